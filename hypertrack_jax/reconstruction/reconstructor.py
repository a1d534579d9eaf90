"""The border: hits in, tracks out."""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Float32

from hypertrack_jax.clustering.clusterer import (
    DENSITY,
    HitClusters,
    density_clusters,
    find_clusters,
)
from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.clustering.transformer import KeptEdges, kept_edges
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.memory import require_memory
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.parameters import CLUSTER, EDGE, GNN_PHASE
from hypertrack_jax.model.weights import (
    count_pairs,
    load_weights,
    require_same_counts,
    shipped_names,
    shipped_path,
)
from hypertrack_jax.reconstruction.stages import (
    Found,
    Model,
    PaddedHits,
    Scores,
    Settings,
    Sizes,
    candidates,
    enough_sizes,
    method_of,
    needed_of,
    reconstruct,
    scored_graph,
    search_again,
    sizes_for,
)
from hypertrack_jax.training.step import init_state
from hypertrack_jax.tunes.tune import ClusterTune, Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics, required_count, warn_of_outside
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

_LOG = logging.getLogger(__name__)
LARGEST_HITS = 2**17
"""The largest capacity for hits that is made without a word: enough for a full TrackML event."""
BYTES_PER_EDGE = 120
"""Memory that the program takes for each edge of its capacity, about."""


class Reconstructor(NamedTuple):
    """A trained model; call it with hits to get tracks.

    It holds no state, so threads may share it, and the tracks of an event do not depend on what was
    reconstructed before. The same hits with the same seed give the same tracks.
    """

    tune: Tune
    voxdyn: VoxelDynamics
    params: dict[str, Any]
    """Weights of the edge predictor (`edge`) and of the clusterer (`cluster`)."""
    batch_stats: Any
    """Running BatchNorm statistics of the edge predictor."""
    seed: int = 0
    """Decides the random choices of the clusterer."""

    @classmethod
    def load(
        cls,
        model: str | Path,
        models: str | Path | None = None,
        step: int = -1,
        cache: str | Path | None = None,
    ) -> "Reconstructor":
        """Loads a model and the Voxel-Dynamics file that its Tune names.

        Args:
          model: the model: a directory of checkpoints, a file of weights, or else the name of one
            that comes with the package, see `training.weights.shipped_names`.
          models: directory of the Voxel-Dynamics files, and of the model where it has no other
            path; by default the one that the model lies in, and `models` for one by name.
          step: the checkpoint; -1 for the latest.
          cache: directory in which this process, and others after it, keep compiled programs: the
            second start is fast. It holds for all that jax compiles from here on.

        Returns:
          A callable from hits to tracks. Where phase 2 has not begun, its tune says `cut` for
          `transformer`, and a warning tells so.

        Raises:
          FileNotFoundError: no such model, step or file.
          ValueError: a file is damaged, or does not belong to the model.
        """
        if cache is not None:
            use_compilation_cache(Path(cache))
        path = Path(models or ".") / model
        if not path.exists() and str(model) in shipped_names():
            return _from_weights(shipped_path(str(model)), Path(models or "models"))
        if path.is_file():
            return _from_weights(path, Path(models or path.parent))
        return _from_checkpoint(path, Path(models or path.parent), step)

    def __call__(
        self, position: np.ndarray, *, with_edges: bool = False, with_timings: bool = False
    ) -> Tracks:
        """Reconstructs one event, by one compiled program.

        The program is made for capacities that follow from the number of hits. Where the event
        exceeds one of them it is run again in larger ones, and the log says so.

        Args:
          position: hit positions in mm, [hit, 3], float32 or float64, which is rounded.
          with_edges: give the scored edges, too.
          with_timings: measure this call, and then the stages one by one, which takes as long
            again. The first call for a set of capacities measures the compilation, too.

        Returns:
          The tracks, with empty edges and timings unless they are asked for. No hits, or hits that
          Voxel-Dynamics joins to no other, give no tracks. Hits outside the space of its training
          hits belong to none, and a warning tells of them.

        Raises:
          ValueError: the positions are not of that shape and type, one of them is not finite, all
            hits are outside the detector, or the event is too large for the memory.
          ImportError: the tune asks for scikit-learn, which is missing.
        """
        started = time.perf_counter()
        hits = checked_hits(position)
        if len(hits) == 0:
            return no_tracks()
        tracks = self.tracks_of(self._found(hits), len(hits), with_edges)
        seconds = {"total": time.perf_counter() - started}
        if with_timings:
            tracks = tracks._replace(seconds=seconds | self.stage_seconds(hits))
        return tracks

    def with_cluster(self, cluster: ClusterTune) -> "Reconstructor":
        """The same model with other settings of the clusterer."""
        return self._replace(tune=replace(self.tune, cluster=cluster))

    def with_min_count(self, min_count: float | int) -> "Reconstructor":
        """The same model on graphs without the rarer pairs: fewer edges, faster.

        Raises:
          ValueError: the model was loaded without counts that small.
        """
        required_count(self.voxdyn, min_count)
        voxdyn = replace(self.tune.voxdyn, min_count=min_count)
        return self._replace(tune=replace(self.tune, voxdyn=voxdyn))

    def warm_up(self, num_hits: Iterable[int]) -> list[Sizes]:
        """Compiles ahead what events with so many hits need; returns the capacities, for the log.

        An event that is denser than others of its size still has a program compiled for it.
        """
        all_sizes = sorted({self.sizes(number) for number in num_hits})
        for sizes in all_sizes:
            none = np.zeros((0, 3), np.float32)
            jax.block_until_ready(self._run(none, sizes))
        return all_sizes

    def stage_seconds(self, position: np.ndarray) -> dict[str, float]:
        """Wall time of each stage, one by one: `VD`, `GNN`, `CC`, `cluster`; see `Tracks`."""
        seconds, started = {}, time.perf_counter()
        graph = jax.block_until_ready(self.graph(position))
        seconds["VD"], started = time.perf_counter() - started, time.perf_counter()
        scores = jax.block_until_ready(self.score(graph))
        seconds["GNN"], started = time.perf_counter() - started, time.perf_counter()
        kept = jax.block_until_ready(self.keep(graph, scores))
        seconds["CC"], started = time.perf_counter() - started, time.perf_counter()
        self.cluster(graph, scores, kept)
        seconds["cluster"] = time.perf_counter() - started
        return seconds

    def graph(self, position: np.ndarray) -> EventGraph:
        """The padded candidate graph of some hits, on the device; raises as a call does."""
        hits = checked_hits(position)
        sizes = self.sizes(len(hits))
        while True:
            found = candidates(
                sizes.num_blocks,
                sizes.num_edges,
                self.arrays(),
                padded_hits(hits, sizes),
                self.settings().min_count,
            )
            enough = enough_sizes(sizes, needed_of(found))
            if enough == sizes:
                return found.graph
            sizes = enough

    def score(self, graph: EventGraph) -> Scores:
        """What the edge predictor says of a graph on the device."""
        return scored_graph(self.tune.network, self.params[EDGE], self.batch_stats, graph)

    def keep(self, graph: EventGraph, scores: Scores) -> KeptEdges:
        """Components of the edges above the threshold."""
        return kept_edges(graph, scores.probability, self.tune.cluster.edge_threshold)

    def cluster(self, graph: EventGraph, scores: Scores, kept: KeptEdges) -> HitClusters:
        """Clusters of the hits of a graph on the device."""
        key = jax.random.key(self.seed)
        return find_clusters(self.tune, self.params[CLUSTER], graph, *scores, kept, key)

    def _found(self, hits: Float32[np.ndarray, "hit 3"]) -> Found:
        """What the program finds in the first capacities that suffice."""
        sizes = self.sizes(len(hits))
        if sizes.num_hits > LARGEST_HITS:
            _LOG.info("an event of %d hits is more than usual: %s", len(hits), sizes)
        found = self._run(hits, sizes)
        while (enough := self.enough_sizes(found, len(hits), sizes)) != sizes:
            is_scored = enough == sizes._replace(search=enough.search)
            sizes = enough
            if is_scored:
                found = self._search_again(hits, sizes, found)
            else:
                del found  # Its memory is needed again.
                found = self._run(hits, sizes)
        return found

    def _run(self, hits: Float32[np.ndarray, "hit 3"], sizes: Sizes) -> Found:
        self.require_memory(len(hits), sizes)
        padded, settings = padded_hits(hits, sizes), self.settings()
        found = reconstruct(method_of(self.tune), sizes, self.arrays(), padded, settings)
        warn_of_outside(self.voxdyn, int(found.num_outside), len(hits))
        return found

    def _search_again(
        self, hits: Float32[np.ndarray, "hit 3"], sizes: Sizes, found: Found
    ) -> Found:
        method, params = method_of(self.tune), self.params[CLUSTER]
        padded = padded_hits(hits, sizes)
        label, membership, needed = search_again(
            method, sizes.search, params, padded, found, self.settings()
        )
        return found._replace(label=label, membership=membership, needed=needed)

    def require_memory(self, num_hits: int, sizes: Sizes, num_events: int = 1) -> None:
        """Refuses capacities, for so many events at once, that the memory does not hold."""
        several = f"{num_events} events at once, the largest" if num_events > 1 else "an event"
        require_memory(
            num_events * BYTES_PER_EDGE * sizes.num_edges,
            f"{several} of {num_hits} hits and up to {sizes.num_edges} edges",
            "a larger min_count, more cells or fewer hits",
        )

    def enough_sizes(self, found: Found, num_hits: int, sizes: Sizes) -> Sizes:
        """The capacities to run an event in again; the same where they sufficed."""
        enough = enough_sizes(sizes, jax.device_get(found.needed))
        if enough != sizes:
            _LOG.info("an event of %d hits needs larger capacities: %s", num_hits, enough)
        return enough

    def tracks_of(self, found: Found, num_hits: int, with_edges: bool) -> Tracks:
        """The tracks of an event from what the program found in it, on the host."""
        num_edges = int(found.needed.num_edges)
        edges = tuple(
            np.asarray(a)[:num_edges] for a in (found.senders, found.receivers, found.probability)
        )
        clusters = HitClusters(*(np.asarray(a)[:num_hits] for a in found[:2]))
        if self.tune.cluster.cluster in DENSITY:
            senders, receivers, probability = edges
            clusters = density_clusters(
                self.tune.cluster, probability, senders, receivers, num_hits
            )
        tracks = Tracks(*clusters, *edges, seconds={})
        return tracks if with_edges else tracks._replace(**_no_edges())

    def sizes(self, num_hits: int) -> Sizes:
        """The capacities that an event of so many hits is tried in first."""
        min_count = int(self.settings().min_count)
        return sizes_for(num_hits, self.voxdyn, min_count, self.tune.cluster)

    def settings(self) -> Settings:
        """The numbers that the program takes beside the hits."""
        return Settings(
            np.array(required_count(self.voxdyn, self.tune.voxdyn.min_count), np.int32),
            np.array(self.tune.cluster.edge_threshold, np.float32),
            jax.random.key(self.seed),
        )

    def arrays(self) -> Model:
        """The arrays that the program takes beside the hits."""
        voxdyn = self.voxdyn
        return Model(voxdyn.rows, voxdyn.index, voxdyn.space, self.params, self.batch_stats)


def use_compilation_cache(directory: Path) -> None:
    """Has jax keep what it compiles in a directory, where the next process finds it."""
    jax.config.update("jax_compilation_cache_dir", str(directory.absolute()))
    # Programs that are compiled faster than this would only fill the directory.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # What was compiled before had settled that there is no directory, or which.
    compilation_cache.reset_cache()


def checked_hits(position: np.ndarray) -> Float32[np.ndarray, "hit 3"]:
    """The positions in float32; raises what `Reconstructor` says."""
    given = np.asarray(position)
    if given.ndim != 2 or given.shape[1] != 3 or given.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"hit positions are an array of shape {given.shape} and type {given.dtype}; expected "
            "x, y and z in mm of each hit, shape (hits, 3), float32 or float64."
        )
    if not np.isfinite(given).all():
        raise ValueError("a hit position is not finite; remove such hits before reconstruction.")
    # What overflows lies outside the detector in either type.
    limit = np.finfo(np.float32).max
    return np.clip(given, -limit, limit).astype(np.float32)


def padded_hits(hits: Float32[np.ndarray, "hit 3"], sizes: Sizes) -> PaddedHits:
    """The hits of an event in the places that the sizes give them."""
    padding = ((0, sizes.num_hits - len(hits)), (0, 0))
    return PaddedHits(np.pad(hits, padding), np.array(len(hits), np.int32))


def _no_edges() -> dict[str, np.ndarray]:
    none = np.zeros(0, np.int32)
    return {"senders": none, "receivers": none, "probability": np.zeros(0, np.float32)}


def no_tracks() -> Tracks:
    """What is found in an event without hits."""
    label = np.full(0, NOISE, np.int32)
    return Tracks(label, np.zeros(0, np.float32), **_no_edges(), seconds={})


def _from_weights(path: Path, models: Path) -> Reconstructor:
    weights = load_weights(path)
    voxdyn = _load_voxdyn(models, weights.tune, weights.num_pairs)
    return Reconstructor(weights.tune, voxdyn, weights.params, weights.batch_stats)


def _from_checkpoint(path: Path, models: Path, step: int) -> Reconstructor:
    with Checkpoints(path.absolute()) as checkpoints:
        saved = checkpoints.describe(step)
        like = jax.eval_shape(partial(init_state, saved.tune), jax.random.key(0))
        state = checkpoints.restore(saved.step, like)
    tune = saved.tune
    voxdyn = _load_voxdyn(models, tune, saved.num_pairs)
    if tune.cluster.cluster == "transformer" and int(state.phase) == GNN_PHASE:
        _LOG.warning(
            "the transformer of %s has not been trained; tracks are made by cut", path.name
        )
        tune = replace(tune, cluster=replace(tune.cluster, cluster="cut"))
    return Reconstructor(tune, voxdyn, state.params, state.batch_stats)


def _load_voxdyn(models: Path, tune: Tune, num_pairs: int | None) -> VoxelDynamics:
    wanted = tune.voxdyn
    path = voxdyn_path(models, wanted.node2node, wanted.ncell)
    voxdyn = load_voxdyn(path, wanted.node2node, wanted.ncell, wanted.min_count)
    require_same_counts(num_pairs, count_pairs(voxdyn), path)
    return voxdyn
