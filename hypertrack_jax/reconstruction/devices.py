"""Host side: several events at once, one on each device of this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.events.event import Event
from hypertrack_jax.reconstruction.capacities import FirstCapacities
from hypertrack_jax.reconstruction.hits import OrderedHits
from hypertrack_jax.reconstruction.reconstructor import (
    Progress,
    Reconstructor,
    no_tracks,
    padded_hits,
    run_stages,
)
from hypertrack_jax.reconstruction.stages import Shared, Stage, stages_of
from hypertrack_jax.voxdyn.model import warn_of_outside

EVENT_AXIS = "event"
"""Name of the axis of devices that events are spread over."""
_SAME, _SPREAD = PartitionSpec(), PartitionSpec(EVENT_AXIS)


@dataclass(frozen=True)
class SpreadReconstructor:
    """A trained model on all devices of this process; call it with the hits of several events.

    They get the tracks that a `Reconstructor` gives them one by one, with probabilities that are
    the same up to rounding.
    """

    model: Reconstructor
    mesh: Mesh
    """The devices."""
    shared: Shared
    """What all events share, whole on each device."""

    @classmethod
    def of(cls, model: Reconstructor) -> "SpreadReconstructor":
        """Copies a model to all devices of this process."""
        mesh = Mesh(np.array(jax.local_devices()), (EVENT_AXIS,))
        return cls(model, mesh, jax.device_put(model.shared(), NamedSharding(mesh, _SAME)))

    def __call__(
        self, positions: Sequence[np.ndarray | Event], *, with_edges: bool = False
    ) -> list[Tracks]:
        """Reconstructs events, as many at once as there are devices.

        Events of about the same number of hits run together, in capacities that suffice for all of
        them. The time of each is its share of theirs.

        Args:
          positions: hit positions in mm of each event, or events, as a `Reconstructor` takes them.
          with_edges: give the scored edges, too.

        Returns:
          The tracks of each event, in their order.

        Raises:
          UserError: what a `Reconstructor` refuses.
          ImportError: the tune asks for scikit-learn, which is missing.
        """
        hits = [self.model.ordered(position) for position in positions]
        tracks = [no_tracks() for _ in hits]
        rising = sorted(range(len(hits)), key=lambda i: len(hits[i].position))
        waiting = [i for i in rising if len(hits[i].position)]
        while waiting:
            together, waiting = waiting[: self.mesh.size], waiting[self.mesh.size :]
            for i, done in zip(together, self._done([hits[i] for i in together]), strict=True):
                tracks[i] = self.model.tracks(done, with_edges)
        return tracks

    def _done(self, hits: list[OrderedHits]) -> list[Progress]:
        """What the stages make of as many events as there are devices, or of fewer."""
        first = _largest([self.model.capacities(len(one.position)) for one in hits])
        none = self.model.no_hits()
        filled = hits + [none] * (self.mesh.size - len(hits))
        events = [padded_hits(one, first.num_hits) for one in filled]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *events)
        stacked = jax.device_put(stacked, NamedSharding(self.mesh, _SPREAD))
        is_shared = self.mesh.devices.flat[0].platform == "cpu"
        done = run_stages(
            stages_of(self.model.tune, first),
            partial(run_spread, self.mesh),
            self.shared,
            Progress(hits[-1], (stacked,), {}),
            num_events=self.mesh.size if is_shared else 1,
        )
        for num_outside, one in zip(done.made[1].num_outside, filled, strict=True):
            warn_of_outside(self.model.voxdyn, int(num_outside), len(one.position))
        seconds = {name: value / len(hits) for name, value in done.seconds.items()}
        seconds["total"] = sum(seconds.values())
        made = jax.device_get(done.made)
        return [
            Progress(one, jax.tree.map(lambda leaf, i=i: leaf[i], made), seconds)
            for i, one in enumerate(hits)
        ]


def run_spread(
    mesh: Mesh, stage: Stage, capacities: Any, shared: Shared, *made: Any
) -> tuple[Any, Any]:
    """Runs a stage on one event of each device; what is needed is what the neediest needs."""
    program = _Program(stage.function, stage.method, capacities)
    result, needed = map_events(program, mesh, shared, made)
    return result, jax.tree.map(np.max, jax.device_get(needed))


class _Program(NamedTuple):
    """A stage with all that is static; equal ones are compiled once."""

    function: Callable[..., tuple[Any, Any]]
    method: Any
    capacities: Any

    def __call__(self, shared: Shared, made: Any) -> tuple[Any, Any]:
        return self.function(self.method, self.capacities, shared, *made)


def _largest(capacities: Sequence[FirstCapacities]) -> FirstCapacities:
    return jax.tree.map(lambda *numbers: max(numbers), *capacities)


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
