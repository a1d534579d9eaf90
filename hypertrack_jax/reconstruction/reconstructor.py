"""Host side: the product, hits in, tracks out."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from hypertrack_jax.capacities import until_enough
from hypertrack_jax.clustering.density import DENSITY, density_clusters
from hypertrack_jax.clustering.tracks import HitClusters, Tracks
from hypertrack_jax.compilation import forget_programs_if_many
from hypertrack_jax.device import memory_told
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.cells import Cells, no_cells
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.networks.cluster_shape import padded_clusters
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.reconstruction.candidates import graph_constructor
from hypertrack_jax.reconstruction.capacities import FirstCapacities, first_capacities, require_room
from hypertrack_jax.reconstruction.hits import OrderedHits, ordered_hits, require_cells
from hypertrack_jax.reconstruction.stages import PaddedHits, Shared, Stage, stages_of
from hypertrack_jax.tunes.tune import ClusterTune, Tune
from hypertrack_jax.voxdyn.model import (
    VoxelDynamics,
    required_count,
    warn_of_outside,
    warn_of_places,
)

Launch = Callable[..., tuple[Any, Any]]
"""Runs a stage: `(stage, capacities, shared, *made) -> (result, needed)`."""


class Progress(NamedTuple):
    """How far the reconstruction of an event has come."""

    hits: OrderedHits
    made: tuple[Any, ...]
    """The padded hits, and the results of the stages that have run, as far as others need them."""
    seconds: dict[str, float]
    """Wall time of each of these stages."""


@dataclass(frozen=True)
class Reconstructor:
    """A trained model; call it with hits to get tracks.

    It holds no state, so threads may share it, and the tracks of an event do not depend on what was
    reconstructed before. The same hits with the same seed give the same tracks, in whatever order
    they come; of hits at exactly one position, which nothing tells apart, any may be in a track.
    """

    tune: Tune
    voxdyn: VoxelDynamics
    params: dict[str, Any]
    """Weights of the edge predictor (`edge`) and of the clusterer (`cluster`)."""
    batch_stats: Any
    """Running BatchNorm statistics of the edge predictor."""
    edge_filter: FilterWeights | None = None
    """The filter, if the tune has one."""
    seed: int = 0
    """Decides the random choices of the clusterer."""

    @classmethod
    def load(
        cls,
        model: str | Path,
        models: str | Path | None = None,
        step: int = -1,
        cache: str | Path | None = None,
        voxdyn: str | Path | None = None,
    ) -> "Reconstructor":
        """Loads a model, and the Voxel-Dynamics file that its Tune names unless it is in the model.

        Args:
          model: a directory of checkpoints, a file of weights, or the name of a model that comes
            with the package (`model.weights.shipped_names`).
          models: directory of the Voxel-Dynamics files, and of the model if it has no other path.
            The default is the directory of the model, and `models` for one by name.
          step: the checkpoint; -1 for the latest.
          cache: directory in which this process and later ones keep compiled programs, so that the
            second start is fast. It holds for all that jax compiles from here on.
          voxdyn: a Voxel-Dynamics file of your own, in place of the model's. It must have counted
            what the model was trained with.

        Returns:
          A callable from hits to tracks. If phase 2 of the training has not begun, its tune says
          `cut` for `transformer`, and a warning says so.

        Raises:
          FileNotFoundError: no such model, step or file.
          UserError: a file is damaged, or does not belong to the model.
        """
        # Not before: a reconstruction without files needs neither.
        from hypertrack_jax.compilation import use_compilation_cache
        from hypertrack_jax.reconstruction.load import load_parts

        if cache is not None:
            use_compilation_cache(Path(cache))
        return cls(*load_parts(model, models, step, voxdyn))

    def __call__(
        self, position: np.ndarray | Event, cells: Cells | None = None, *, with_edges: bool = False
    ) -> Tracks:
        """Reconstructs one event.

        Each stage is a program that is compiled for capacities, which follow from the number of
        hits. A stage that an event exceeds is run again in larger ones, and the log says so.

        Args:
          position: hit positions in mm, [hit, 3], float32 or float64, which is rounded; or an
            event, whose positions and cells are taken.
          cells: the clusters of the hits. Only models that look at their shape need them.
          with_edges: give the scored edges, too.

        Returns:
          The tracks, with empty edges unless they are asked for. No hits, or hits that
          Voxel-Dynamics joins to no other, give no tracks. Hits outside the space of its training
          hits belong to none, and a warning tells of them.

        Raises:
          UserError: the positions are not of that shape and type, are masked or not finite; many
            hits lie at nearly one position; most are in the beam pipe, or all outside the detector;
            the model needs cells, and there are none; the event is too large for the memory.
          ImportError: the tune asks for scikit-learn, which is missing.
        """
        started = time.perf_counter()
        hits = self.ordered(position, cells)
        if not len(hits.position):
            return no_tracks()
        tracks = self.tracks(self.run_to("cluster", self._begin(hits)), with_edges)
        total = {"total": time.perf_counter() - started}
        return tracks._replace(seconds=tracks.seconds | total)

    def begin(self, position: np.ndarray | Event, cells: Cells | None = None) -> Progress:
        """The hits as the stages take them; with `run_to` and `tracks` a call in steps.

        At least one hit is needed; what a call refuses is refused.
        """
        return self._begin(self.ordered(position, cells))

    def ordered(self, position: np.ndarray | Event, cells: Cells | None = None) -> OrderedHits:
        """The hits in canonical order, with their clusters if the model looks at them."""
        if isinstance(position, Event):
            position, cells = position.position, cells or position.cells
        are_seen = self.tune.edge_filter.cells != "none"
        hits = ordered_hits(position, require_cells(cells) if are_seen else None)
        warn_of_places(self.voxdyn, hits.position)
        return hits

    def no_hits(self) -> OrderedHits:
        """An event without hits, as the model takes it."""
        return self.ordered(np.zeros((0, 3), np.float32), no_cells())

    def run_to(self, last: str, progress: Progress) -> Progress:
        """Runs the next stages, up to the one that is called `last`, see `Tracks.seconds`.

        What other settings of the clusterer do not change need not be run again for them: the
        stages up to `GNN` serve all of them.
        """
        num_hits = len(progress.hits.position)
        stages = self.stages(num_hits)
        names = [stage.name for stage in stages]
        due = stages[len(progress.seconds) : names.index(last) + 1]
        done = run_stages(due, run_stage, self.shared(), progress)
        if not progress.seconds:
            warn_of_outside(self.voxdyn, int(done.made[1].num_outside), num_hits)
        return done

    def with_cluster(self, cluster: ClusterTune) -> "Reconstructor":
        """The same model with other settings of the clusterer."""
        return replace(self, tune=replace(self.tune, cluster=cluster))

    def with_min_count(self, min_count: float | int) -> "Reconstructor":
        """The same model on graphs without the rarer pairs: fewer edges, faster.

        Raises:
          UserError: the model was loaded without counts that small, or its filter was trained with
            others.
        """
        required = required_count(self.voxdyn, min_count)
        trained = required_count(self.voxdyn, self.tune.voxdyn.min_count)
        if self.edge_filter is not None and required != trained:
            raise UserError(
                f"min_count is {required}, but the filter of this model was trained on graphs of "
                f"min_count {trained}; keep that, or train a filter with the other."
            )
        voxdyn = replace(self.tune.voxdyn, min_count=min_count)
        return replace(self, tune=replace(self.tune, voxdyn=voxdyn))

    def warm_up(self, num_hits: Iterable[int]) -> list[FirstCapacities]:
        """Compiles what events of so many hits need, and returns the capacities.

        An event that is denser than others of its size still compiles programs of its own.
        """
        by_capacities = {self.capacities(number): number for number in num_hits}
        none = self.no_hits()
        for first in sorted(by_capacities):
            padded = padded_hits(none, first.num_hits)
            start = Progress(none, (padded,), {})
            run_stages(stages_of(self.tune, first), run_stage, self.shared(), start)
        return sorted(by_capacities)

    def capacities(self, num_hits: int) -> FirstCapacities:
        """The capacities that an event of so many hits is tried in first."""
        min_count = required_count(self.voxdyn, self.tune.voxdyn.min_count)
        return first_capacities(num_hits, self.voxdyn, min_count, self.tune)

    def stages(self, num_hits: int) -> list[Stage]:
        """The stages for an event of so many hits."""
        return stages_of(self.tune, self.capacities(num_hits))

    def shared(self) -> Shared:
        """What the stages take beside the hits."""
        return Shared(
            graph_constructor(self.voxdyn, self.tune.voxdyn.min_count),
            self.params,
            self.batch_stats,
            np.array(self.tune.cluster.edge_threshold, np.float32),
            jax.random.key(self.seed),
            self.edge_filter,
        )

    def tracks(self, done: Progress, with_edges: bool = False) -> Tracks:
        """The tracks of an event that all stages have run on."""
        hits, (_, candidates, scores, _, clusters) = done.hits, done.made
        num_hits, graph = len(hits.position), candidates.graph
        clusters = HitClusters(*(np.asarray(part)[:num_hits] for part in clusters))
        on_host = self.tune.cluster.cluster in DENSITY
        edges = no_tracks()[2:5]
        if with_edges or on_host:
            num_edges = int(np.asarray(graph.n_edge)[0])
            edges = (graph.senders, graph.receivers, scores.probability)
            senders, receivers, probability = (np.asarray(part)[:num_edges] for part in edges)
            if on_host:
                clusters = density_clusters(
                    self.tune.cluster, probability, senders, receivers, num_hits
                )
            place = hits.order.astype(np.int32)
            edges = place[senders], place[receivers], probability
        label, membership = (np.empty_like(part) for part in clusters)
        label[hits.order], membership[hits.order] = clusters
        if not with_edges:
            edges = no_tracks()[2:5]
        return Tracks(by_first_hit(label), membership, *edges, done.seconds)

    def _begin(self, hits: OrderedHits) -> Progress:
        num_places = self.capacities(len(hits.position)).num_hits
        return Progress(hits, (padded_hits(hits, num_places),), {})


def run_stage(stage: Stage, capacities: Any, shared: Shared, *made: Any) -> tuple[Any, Any]:
    """Runs a stage on one event, on the device that jax takes by itself."""
    return stage(capacities, shared, *made)


def run_stages(
    stages: Sequence[Stage], launch: Launch, shared: Shared, start: Progress, num_events: int = 1
) -> Progress:
    """Runs stages one after another, each in capacities that suffice.

    Args:
      stages: the next ones.
      launch: how a stage is run, on one event or on several at once.
      shared: what all events share.
      start: the event, or the largest of several, and what was made of them so far.
      num_events: how many events share the memory.

    Raises:
      UserError: the memory is too small, or the graph larger than 32-bit indices reach.
    """
    num_hits, made, seconds = len(start.hits.position), start.made, dict(start.seconds)
    for stage in stages:
        started = time.perf_counter()
        run = partial(_run, launch, stage, shared, made, num_hits, num_events)
        made = stage.after(made, until_enough(run, stage.capacities))
        seconds[stage.name] = time.perf_counter() - started
    return Progress(start.hits, made, seconds)


def _run(
    launch: Launch,
    stage: Stage,
    shared: Shared,
    made: tuple[Any, ...],
    num_hits: int,
    num_events: int,
    capacities: Any,
) -> tuple[Any, Any]:
    require_room(capacities, num_hits, num_events)
    forget_programs_if_many()
    what = f"{stage.name} of an event of {num_hits} hits"
    with memory_told(what, "a larger min_count or edge_threshold, fewer hits"):
        return jax.block_until_ready(launch(stage, capacities, shared, *made))


def padded_hits(hits: OrderedHits, num_places: int) -> PaddedHits:
    """The hits of an event in so many places."""
    padding = ((0, num_places - len(hits.position)), (0, 0))
    return PaddedHits(
        np.pad(hits.position, padding),
        np.array(len(hits.position), np.int32),
        None if hits.cells is None else padded_clusters(hits.cells, num_places),
    )


def by_first_hit(label: Int[np.ndarray, " hit"]) -> Int[np.ndarray, " hit"]:
    """The clusters numbered 0, 1, ... in the order of their first hits; -1 stays."""
    names, first, place = np.unique(label, return_index=True, return_inverse=True)
    number = np.empty(len(names), label.dtype)
    number[np.argsort(first)] = np.arange(len(names))
    if NOISE in names:
        noise = number[0]
        number = np.where(number > noise, number - 1, number).astype(label.dtype)
        number[0] = NOISE
    return number[place]


def no_tracks() -> Tracks:
    """What is found in an event without hits."""
    none, no_numbers = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return Tracks(none, no_numbers, none, none, no_numbers, seconds={})
