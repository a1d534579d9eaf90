"""Host side: the stages as one program in a file, which runs wherever jax does, without us."""

import zlib
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from hypertrack_jax.clustering.density import DENSITY
from hypertrack_jax.clustering.neighbors import at_hits
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.graph.segment import segment_min
from hypertrack_jax.networks.cluster_shape import Clusters
from hypertrack_jax.reconstruction.hits import canonical_order
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.reconstruction.stages import PaddedHits

PLATFORMS = ("cpu", "cuda")
"""What the file is made for; it is compiled where it is loaded."""


def export_reconstruction(
    model: Reconstructor, num_hits: int, platforms: Sequence[str] = PLATFORMS
) -> bytes:
    """The program for events of up to about `num_hits` hits, with its weights and C inside.

    The exported function takes `position` [hit, 3], float32 in mm, padded to the length that
    `in_avals` of the loaded file tells, and `num_hits`, an int32. It gives a dict of `label` and
    `membership` per place, as in `Tracks`, and `is_overflow`: True if the event needs larger
    capacities, so that the labels are of no use. Hits outside the detector belong to no track; a
    coordinate that is not finite counts as outside. `experiments/exported.py` loads it.

    Args:
      model: the model; its tune and seed are fixed in the file.
      num_hits: number of hits that the capacities are made for.
      platforms: where it can run.

    Returns:
      The content of the file: what `jax.export` makes of the program, and 4 bytes with its CRC-32,
      which `jax.export.deserialize` ignores.

    Raises:
      ImportError: flatbuffers is missing.
      UserError: the tune's clusterer runs on the host, or the model needs cells.
    """
    if model.tune.cluster.cluster in DENSITY:
        raise UserError(
            f"the clusterer {model.tune.cluster.cluster} runs on the host, by scikit-learn, and "
            "cannot be exported; choose transformer, cut or none."
        )
    if model.tune.edge_filter.cells != "none":
        raise UserError(
            "a model that looks at the shape of clusters cannot be exported, since an exported "
            "program takes positions alone; export a model without."
        )
    num_places = model.capacities(num_hits).num_hits
    exported = jax.export.export(jax.jit(one_program(model, num_hits)), platforms=platforms)(
        jax.ShapeDtypeStruct((num_places, 3), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    )
    try:
        program = bytes(exported.serialize())
    except ImportError as error:
        raise MissingPackageError(
            "to export needs flatbuffers; install it: pip install 'hypertrack-jax[export]'."
        ) from error
    return program + zlib.crc32(program).to_bytes(4, "little")


def one_program(model: Reconstructor, num_hits: int):
    """All stages in their first capacities as one function, which `export_reconstruction` tells."""
    stages, shared = model.stages(num_hits), model.shared()

    def labels(
        position: Float32[Array, "hit 3"],
        num_hits: Int32[Array, ""],
        clusters: Clusters | None = None,
    ) -> dict[str, Array]:
        is_hit = jnp.arange(len(position)) < num_hits
        order = canonical_order(position, jnp)
        # Places without a hit hold anything, and stay behind the hits.
        order = order[jnp.argsort(~is_hit[order], stable=True)]
        clusters = jax.tree.map(lambda part: part[order], clusters)
        made: tuple[Any, ...] = (PaddedHits(position[order], num_hits, clusters),)
        is_exceeded = []
        for stage in stages:
            result, needed = stage(stage.capacities, shared, *made)
            made = stage.after(made, result)
            is_exceeded += [n > c for n, c in zip(needed, stage.capacities, strict=True)]
        *_, found = made
        label = jnp.zeros_like(found.label).at[order].set(found.label)
        membership = jnp.zeros_like(found.membership).at[order].set(found.membership)
        is_overflow = reduce(or_, is_exceeded, jnp.array(False))
        return {
            "label": traced_by_first_hit(label),
            "membership": membership,
            "is_overflow": jnp.asarray(is_overflow),
        }

    return labels


def traced_by_first_hit(label: Int32[Array, " hit"]) -> Int32[Array, " hit"]:
    """The clusters numbered by their first hits; -1 stays.

    Args:
      label: a number per hit, the same within a cluster, below the number of hits; -1 for none.
    """
    num_hits = len(label)
    hit = jnp.arange(num_hits, dtype=jnp.int32)
    first = segment_min(hit, label, num_hits, sorted_ids=False)
    is_first = (label >= 0) & (at_hits(first, jnp.maximum(label, 0), num_hits) == hit)
    number = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    of_cluster = at_hits(number, at_hits(first, jnp.maximum(label, 0), num_hits), -1)
    return jnp.where(label >= 0, of_cluster, -1)
