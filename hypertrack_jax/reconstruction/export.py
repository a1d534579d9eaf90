"""Host side: a reconstruction as one file that runs wherever jax does, without this package."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from hypertrack_jax.clustering.clusterer import DENSITY
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.reconstruction.stages import PaddedHits, is_exceeded, method_of, reconstruct

PLATFORMS = ("cpu", "cuda")
"""What the file is made for; it is compiled where it is loaded."""


def export_reconstruction(
    model: Reconstructor, num_hits: int, platforms: Sequence[str] = PLATFORMS
) -> bytes:
    """The program for events of up to about `num_hits` hits, with its weights and C inside.

    What is exported is a function from `position` [hit, 3], float32 in mm, padded to the capacity
    that `in_avals` of the loaded file tells, and `num_hits`, an int32, to a dict of `label` and
    `membership` per place, as in `Tracks`, and `is_overflow`: True where the event needs larger
    capacities and the labels are of no use. Hits outside the detector belong to no track; a
    coordinate that is not finite counts as outside. `experiments/exported.py` loads it.

    Args:
      model: the model; its tune and seed are fixed in the file.
      num_hits: number of hits that the capacities are made for.
      platforms: where it can run.

    Returns:
      The content of the file.

    Raises:
      ImportError: flatbuffers is missing.
      ValueError: the tune's clusterer runs on the host.
    """
    if model.tune.cluster.cluster in DENSITY:
        raise ValueError(
            f"--cluster={model.tune.cluster.cluster} runs on the host, by scikit-learn, and cannot "
            "be exported; choose transformer, cut or none."
        )
    sizes, method = model.sizes(num_hits), method_of(model.tune)
    arrays, settings = model.arrays(), model.settings()

    def labels(position: Float32[Array, "hit 3"], num_hits: Int32[Array, ""]) -> dict[str, Array]:
        found = reconstruct(method, sizes, arrays, PaddedHits(position, num_hits), settings)
        return {
            "label": found.label,
            "membership": found.membership,
            "is_overflow": jnp.asarray(is_exceeded(sizes, found.needed)),
        }

    exported = jax.export.export(jax.jit(labels), platforms=platforms)(
        jax.ShapeDtypeStruct((sizes.num_hits, 3), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    )
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ImportError(
            "to export needs flatbuffers; install it: pip install 'hypertrack-jax[export]'."
        ) from error
