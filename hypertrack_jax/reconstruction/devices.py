"""The border: several events at once, one on each device of this process."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation.evaluate import Batched
from hypertrack_jax.reconstruction.reconstructor import (
    Reconstructor,
    checked_hits,
    no_tracks,
    padded_hits,
)
from hypertrack_jax.reconstruction.stages import (
    Found,
    Method,
    Model,
    PaddedHits,
    Settings,
    Sizes,
    method_of,
    reconstruct,
)
from hypertrack_jax.voxdyn.model import warn_of_outside

EVENT = "event"
"""Name of the axis of devices that events are spread over."""
_SAME, _SPREAD = PartitionSpec(), PartitionSpec(EVENT)
EVENTS_PER_DEVICE = 4
"""Events that the evaluation has at once for each device; those of equal capacities run together,
so that of more events fewer devices are left without one."""
PER_EVENT = "per event"
"""Name of the wall time of a call, divided by the number of its events."""


class Program(NamedTuple):
    """`reconstruct` with all that is static; equal ones are compiled once."""

    method: Method
    sizes: Sizes

    def __call__(self, known: tuple[Model, Settings], hits: PaddedHits) -> Found:
        """Labels of one event, see `compiled.reconstruct`."""
        model, settings = known
        return reconstruct(self.method, self.sizes, model, hits, settings)


class SpreadReconstructor(NamedTuple):
    """A trained model on all devices of this process; call it with the hits of several events.

    They get the tracks that a `Reconstructor` gives them one by one, with probabilities that are
    the same up to rounding.
    """

    model: Reconstructor
    mesh: Mesh
    """The devices."""
    arrays: Model
    """Those of the model, whole on each of them."""

    @classmethod
    def of(cls, model: Reconstructor) -> "SpreadReconstructor":
        """Copies a model to all devices of this process."""
        mesh = Mesh(np.array(jax.local_devices()), (EVENT,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        return cls(model, mesh, jax.device_put(model.arrays(), everywhere))

    def __call__(
        self,
        positions: Sequence[np.ndarray],
        *,
        with_edges: bool = False,
        with_timings: bool = False,
    ) -> list[Tracks]:
        """Reconstructs events; those of equal capacities together, one on each device.

        Where an event exceeds its capacities it is run again in larger ones, beside others that
        have these.

        Args:
          positions: hit positions in mm of each event, as a `Reconstructor` takes them.
          with_edges: give the scored edges, too.
          with_timings: give the wall time of this call divided by the number of events; its stages
            are not measured.

        Returns:
          The tracks of each event, in their order.

        Raises:
          ValueError: what a `Reconstructor` refuses.
          ImportError: the tune asks for scikit-learn, which is missing.
        """
        started = time.perf_counter()
        hits = [checked_hits(position) for position in positions]
        tracks = [no_tracks() for _ in hits]
        waiting = {i: self.model.sizes(len(one)) for i, one in enumerate(hits) if len(one)}
        while waiting:
            sizes = min(waiting.values())
            together = [i for i, wanted in waiting.items() if wanted == sizes][: self.mesh.size]
            all_found = self._found([hits[i] for i in together], sizes)
            for i, found in zip(together, all_found, strict=True):
                waiting[i] = self.model.enough_sizes(found, len(hits[i]), sizes)
                if waiting[i] == sizes:
                    tracks[i] = self.model.tracks_of(found, len(hits[i]), with_edges)
                    del waiting[i]
        if with_timings:
            seconds = (time.perf_counter() - started) / max(len(hits), 1)
            tracks = [one._replace(seconds={PER_EVENT: seconds}) for one in tracks]
        return tracks

    def _found(self, hits: list[np.ndarray], sizes: Sizes) -> list[Found]:
        """What the program finds in as many events as there are devices, or in fewer."""
        is_shared = self.mesh.devices.flat[0].platform == "cpu"
        self.model.require_memory(
            max(map(len, hits)), sizes, num_events=self.mesh.size if is_shared else 1
        )
        none = np.zeros((0, 3), np.float32)
        filled = hits + [none] * (self.mesh.size - len(hits))
        events = [padded_hits(one, sizes) for one in filled]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *events)
        stacked = jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(EVENT)))
        program = Program(method_of(self.model.tune), sizes)
        known = self.arrays, self.model.settings()
        found = jax.device_get(map_events(program, self.mesh, known, stacked))
        for num_outside, one in zip(found.num_outside, filled, strict=True):
            warn_of_outside(self.model.voxdyn, int(num_outside), len(one))
        return [jax.tree.map(itemgetter(i), found) for i in range(len(hits))]


def as_evaluated(model: Reconstructor) -> Callable[[np.ndarray], Tracks] | Batched:
    """How the evaluation calls a model: on all devices of this process where there are several."""
    if jax.local_device_count() == 1:
        return partial(model, with_edges=True, with_timings=True)
    spread = SpreadReconstructor.of(model)
    call = partial(spread, with_edges=True, with_timings=True)
    return Batched(call, EVENTS_PER_DEVICE * spread.mesh.size)


@partial(jax.jit, static_argnums=(0, 1))
def map_events(function: Callable[[Any, Any], Any], mesh: Mesh, known: Any, events: Any) -> Any:
    """`function(known, event)` of every event, each device taking those that lie on it in turn."""

    def of_device(known, events):
        return jax.lax.map(partial(function, known), events)

    return on_each_device(of_device, mesh, (_SAME, _SPREAD))(known, events)


def on_each_device(function: Callable, mesh: Mesh, places: tuple[PartitionSpec, ...]) -> Callable:
    """`function` on the devices of a mesh, each with its part of what is spread over them."""
    # Without the check of what varies over the devices, which the scans in the networks fail: their
    # carries begin as constants.
    return jax.shard_map(function, mesh=mesh, in_specs=places, out_specs=_SPREAD, check_vma=False)
