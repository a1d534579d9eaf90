"""Both sides: trains the filter on azimuth sectors of events, and chooses its thresholds.

Each step takes a sector of one event, drawn anew from (seed, step). Pairs and triplets learn
together: the triplets of a round are made of the pairs that a threshold keeps, which is set anew in
each step so that it loses few true pairs. Every particle weighs as much as any other, in the loss
and in the choice of the thresholds; false pairs together weigh as much as true ones.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int32

from hypertrack_jax.capacities import power_above
from hypertrack_jax.compilation import forget_programs_if_many
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.sectors import require_sectors
from hypertrack_jax.files import locked
from hypertrack_jax.graph.pair_graph import HitPairs, pair_graph, pairs_kept, rows_kept
from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.filters import save_filter
from hypertrack_jax.model.parameters import by_name
from hypertrack_jax.networks.cluster_shape import Clusters, padded_clusters
from hypertrack_jax.networks.edge_filter import (
    NUM_ROUNDS,
    FilterWeights,
    apply_layers,
    filter_coordinates,
    init_filter,
    no_bend,
    pair_inputs,
    triplet_scores,
)
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz
from hypertrack_jax.reconstruction.candidates import LEAST_PAIRS, raw_pairs_of
from hypertrack_jax.reconstruction.hits import require_cells
from hypertrack_jax.training.batches import EventSource, fixed_sectors, step_events
from hypertrack_jax.training.metrics_file import MetricsFile
from hypertrack_jax.training.optimizer import learning_rate_schedule
from hypertrack_jax.tunes.tune import OptimizerTune, Tune
from hypertrack_jax.voxdyn.hit_pairs import pair_block
from hypertrack_jax.voxdyn.model import VoxelDynamics, required_count

_LOG = logging.getLogger(__name__)
LEARNING_RATE, FINAL_RATE = 4e-3, 0.02
"""Peak of the cosine, and its end as a fraction of it."""
KEPT_IN_TRAINING = 0.988, 0.985
"""Share of the true pairs that the thresholds before each round keep in a training step."""
LOST_BEFORE = 0.35, 0.7
"""Of the true edges that the filter may lose, the share that is lost by pairs, and by pairs and
first round together."""
TRACK_PAIRS = 3
"""Pairs that hold the four hits of the shortest track together."""
LEAST_NEIGHBORS = 64
"""Least room for the neighbours of a hit."""
FALSE_PAIRS = 64.0, 8.0, 2.0
"""So many false pairs for each hit weigh as much as all true ones, before pairs and rounds: a full
event has about as many. In an event that is not crowded the false ones weigh little."""
SAVE_STEPS = 50
"""Steps between two savings of the state."""
_STATE = NpzFormat(
    kind="the state of an unfinished training",
    remedy="remove it to train anew",
    arrays={"step": ArrayType(np.int64, ())},
    others=ArrayType(np.float32),
    version=1,
)


class SectorPairs(NamedTuple):
    """The raw pairs of a sector, with its truth."""

    position: Float[Array | np.ndarray, "hit 3"]
    particle: Int32[Array | np.ndarray, " hit"]
    is_core: Bool[Array | np.ndarray, " hit"]
    degree: Int32[Array, " hit"]
    pairs: HitPairs
    """All that C joins; the logits are 0."""
    clusters: Clusters | None = None
    """Of the hits, for a filter that looks at their shape."""


class FilterMetrics(NamedTuple):
    """What a training step says of pairs and rounds."""

    losses: Float[Array, "stage"]
    kept: Float[Array, "stage"]
    """Share of the raw pairs that come before pairs and rounds."""


@dataclass(frozen=True)
class FilterRun:
    """What to train a filter with."""

    source: EventSource
    """Sectors to train with."""
    held_out: EventSource
    """Sectors that the thresholds are chosen by."""
    num_steps: int
    path: Path
    """File of the filter; the state of an unfinished training stands beside it."""
    log_directory: Path
    """Directory of `metrics.jsonl`."""


def train_filter(
    run: FilterRun, tune: Tune, voxdyn: VoxelDynamics, progress: Callable[[range], Iterable[int]]
) -> FilterWeights:
    """Trains a filter and writes it; the same run goes on where it was stopped.

    Args:
      run: events, steps and files.
      tune: has the filter's width and efficiency.
      voxdyn: the graphs to filter.
      progress: passes the numbers of the steps on and shows them.

    Returns:
      The filter, with the thresholds chosen.

    Raises:
      UserError: a sector is no larger than its halo; another process trains this filter; the saved
        state is damaged.
    """
    for source in (run.source, run.held_out):
        if source.sector_hits is not None:
            require_sectors(source.directory, source.event_ids, source.sector_hits)
    optimizer = _optimizer(run.num_steps)
    key = jax.random.key(run.source.seed)
    of_filter = tune.edge_filter
    begin = init_filter(key, of_filter.width, of_filter.cells, tune.network.length_scale)
    unfinished = run.path.with_suffix(".unfinished.npz")
    run.log_directory.mkdir(parents=True, exist_ok=True)
    run.path.parent.mkdir(parents=True, exist_ok=True)
    with locked(run.path.with_suffix(".lock"), f"the training of {run.path.name}"):
        first, state = _read_state(unfinished, (begin, optimizer.init(begin)))
        with closing(MetricsFile(run.log_directory, first)) as metrics:
            for step in progress(range(first, run.num_steps)):
                (drawn,) = step_events(run.source, step, 1)
                sector = sector_pairs(*drawn, voxdyn, tune)
                forget_programs_if_many()
                *state, told = _update(optimizer, most_neighbors(sector), *state, sector)
                metrics.write(step, _told(told))
                if (step + 1) % SAVE_STEPS == 0 or step + 1 == run.num_steps:
                    _write_state(unfinished, step + 1, state)
        held_out = [sector_pairs(*drawn, voxdyn, tune) for drawn in fixed_sectors(run.held_out)]
        weights = with_thresholds(state[0], held_out, tune.edge_filter.efficiency)
        min_count = required_count(voxdyn, tune.voxdyn.min_count)
        save_filter(run.path, weights, count_pairs(voxdyn), min_count)
        unfinished.unlink(missing_ok=True)
    return weights


def sector_pairs(
    event: Event, is_core: Bool[np.ndarray, " hit"], voxdyn: VoxelDynamics, tune: Tune
) -> SectorPairs:
    """The raw pairs of a sector, in room of few sizes, each of which is compiled by itself."""
    num_hits = len(event.position)
    raw, padded = raw_pairs_of(voxdyn, event.position, tune.voxdyn.min_count)
    size = power_above(int(raw.num_raw), LEAST_PAIRS)
    missing, clusters = len(padded.position) - num_hits, None
    if tune.edge_filter.cells != "none":
        clusters = padded_clusters(require_cells(event.cells), len(padded.position))
    return SectorPairs(
        position=padded.position,
        particle=np.pad(event.hit_particle, (0, missing), constant_values=-1),
        is_core=np.pad(is_core, (0, missing)),
        degree=raw.degree,
        pairs=_all_pairs(raw, size),
        clusters=clusters,
    )


@partial(jax.jit, static_argnums=1)
def _all_pairs(raw, size: int) -> HitPairs:
    block = pair_block(raw, jnp.int32(0), size=size)
    every = HitPairs(block.one, block.other, block.count, jnp.zeros(size), jnp.int32(size))
    return pairs_kept(every, block.mask, size)


def most_neighbors(sector: SectorPairs) -> int:
    """Room for the neighbours of a hit, which rounds have no more of than the raw pairs."""
    return power_above(int(sector.degree.max()), LEAST_NEIGHBORS)


def stage_logits(
    num_neighbors: int,
    weights: FilterWeights,
    sector: SectorPairs,
    thresholds: Sequence[Any | None],
) -> list[HitPairs]:
    """The pairs that come to the pair filter and to each round, with the logits that they get.

    Args:
      num_neighbors: `most_neighbors` of the sector.
      weights: the filter.
      sector: the sector.
      thresholds: smallest logits that come to each round; None: the one that keeps
        `KEPT_IN_TRAINING` of its true pairs.
    """
    coordinates = filter_coordinates(weights, jnp.asarray(sector.position))
    num_hits = len(sector.position)
    pairs = sector.pairs
    clusters = jax.tree.map(jnp.asarray, sector.clusters)
    ends = pairs.one, pairs.other
    inputs = pair_inputs(coordinates, sector.degree, *ends, pairs.count, clusters)
    pairs = pairs._replace(logit=apply_layers(weights.pairs, inputs))
    stages, bend = [pairs], no_bend(len(pairs.one))
    rounds = zip(weights.triplets, thresholds, KEPT_IN_TRAINING, strict=True)
    for layers, threshold, share in rounds:
        if threshold is None:
            threshold = _threshold_for(share, pairs, sector)
        is_kept, size = pairs.logit >= threshold, len(pairs.one)
        bend = rows_kept(bend, pairs, is_kept, size)
        pairs = pairs_kept(pairs, is_kept, size)
        graph = pair_graph(pairs, num_hits)
        of_round = coordinates, sector.degree, graph, bend, num_neighbors, clusters
        logit, bend = triplet_scores(layers, *of_round)
        pairs = pairs._replace(logit=logit)
        stages.append(pairs)
    return stages


def true_weights(pairs: HitPairs, sector: SectorPairs) -> Float[Array, " pair"]:
    """What each true pair weighs, all together 1; 0 for false ones and where there is none."""
    weight = _weights(pairs, sector, _particle_pairs(pairs, sector))
    return weight / jnp.maximum(weight.sum(), 1e-6)


def filter_loss(
    weights: FilterWeights, sector: SectorPairs, num_neighbors: int
) -> tuple[Array, FilterMetrics]:
    """The cross entropies of pairs and rounds.

    Where there are few false pairs they weigh little, so that true ones get higher logits, and the
    thresholds of crowded events keep nearly all of them.
    """
    stages = stage_logits(num_neighbors, weights, sector, [None] * NUM_ROUNDS)
    losses = []
    num_hits = (sector.degree > 0).sum()
    for pairs, number in zip(stages, FALSE_PAIRS, strict=True):
        right = true_weights(pairs, sector)
        is_false = (_is_pair(pairs) & (right == 0)).astype(jnp.float32)
        wrong = is_false / jnp.maximum(number * num_hits, 1)
        losses.append(
            (right * jax.nn.softplus(-pairs.logit) + wrong * jax.nn.softplus(pairs.logit)).sum()
        )
    numbers = jnp.stack([pairs.number for pairs in stages]).astype(jnp.float32)
    kept = numbers / jnp.maximum(numbers[:1], 1)
    return sum(losses, jnp.float32(0)), FilterMetrics(jnp.stack(losses), kept)


def with_thresholds(
    weights: FilterWeights, sectors: Sequence[SectorPairs], efficiency: float
) -> FilterWeights:
    """The filter with thresholds that keep a share of the true pairs at the cores of sectors.

    Every particle counts as in `true_weights`. Pairs and first round lose `LOST_BEFORE` of what may
    be lost, so that they stay fast.
    """
    shares = [1 - lost * (1 - efficiency) for lost in (*LOST_BEFORE, 1.0)]
    thresholds: list[float] = []
    for number, share in enumerate(shares):
        logits, shares_of, total = [], [], 0.0
        for sector in sectors:
            given = (thresholds + [np.inf] * NUM_ROUNDS)[:NUM_ROUNDS]
            stages = stages_at(most_neighbors(sector), weights, sector, given)
            pairs, particle_pairs = stages[number], _particle_pairs(stages[0], sector)
            total += float(_core_weights(stages[0], sector, particle_pairs).sum())
            weight = np.asarray(_core_weights(pairs, sector, particle_pairs), np.float64)
            logits.append(np.asarray(pairs.logit)[weight > 0])
            shares_of.append(weight[weight > 0])
        if not total:
            raise UserError(
                "the held-out events have no true pairs, by which thresholds could be chosen; "
                "name others."
            )
        found, weight = np.concatenate(logits), np.concatenate(shares_of)
        rising = np.argsort(found)
        # What is lost where the threshold is the logit of this pair.
        lost = total - weight[rising][::-1].cumsum()[::-1]
        place = np.searchsorted(lost, (1 - share) * total, side="right") - 1
        thresholds.append(float(found[rising][max(place, 0)]))
    return weights._replace(thresholds=jnp.array(thresholds, jnp.float32))


stages_at = jax.jit(stage_logits, static_argnums=0)


def _weights(
    pairs: HitPairs, sector: SectorPairs, particle_pairs: Float[Array, " particle"]
) -> Float[Array, " pair"]:
    """Of true pairs: each particle weighs 1, but less with fewer pairs than join a track's hits."""
    number = jnp.maximum(particle_pairs, TRACK_PAIRS)
    particle = jnp.asarray(sector.particle)[pairs.one]
    return jnp.where(_is_true(pairs, sector), 1 / number[particle], 0)


def _core_weights(
    pairs: HitPairs, sector: SectorPairs, particle_pairs: Float[Array, " particle"]
) -> Float[Array, " pair"]:
    """Of those with a hit in the core: with both, those that span much azimuth would be few."""
    is_core = jnp.asarray(sector.is_core)
    is_counted = is_core[pairs.one] | is_core[pairs.other]
    return jnp.where(is_counted, _weights(pairs, sector, particle_pairs), 0)


def _particle_pairs(pairs: HitPairs, sector: SectorPairs) -> Float[Array, " particle"]:
    """How many of the pairs are true ones of each particle."""
    is_true, num_segments = _is_true(pairs, sector), len(sector.particle)
    particle = jnp.where(is_true, jnp.asarray(sector.particle)[pairs.one], num_segments)
    return segment_sum(is_true.astype(jnp.float32), particle, num_segments, sorted_ids=False)


def _is_true(pairs: HitPairs, sector: SectorPairs) -> Bool[Array, " pair"]:
    particle = jnp.asarray(sector.particle)
    one, other = particle[pairs.one], particle[pairs.other]
    return _is_pair(pairs) & (one == other) & (one >= 0)


def _is_pair(pairs: HitPairs) -> Bool[Array, " pair"]:
    return jnp.arange(len(pairs.one)) < pairs.number


def _threshold_for(share: float, pairs: HitPairs, sector: SectorPairs) -> Float[Array, ""]:
    """The logit above which this share of the weight of the true pairs lies."""
    weight = true_weights(pairs, sector)
    logit = jax.lax.stop_gradient(jnp.where(weight > 0, pairs.logit, jnp.inf))
    rising = jnp.argsort(logit)
    below = jnp.cumsum(weight[rising])
    return logit[rising][jnp.searchsorted(below, (1 - share) * below[-1])]


@cache
def _optimizer(num_steps: int) -> optax.GradientTransformation:
    """The same object for the same number: another one would have the step compiled again."""
    rate = learning_rate_schedule(
        OptimizerTune(
            learning_rate=LEARNING_RATE, scheduler_type="cos", period=num_steps, floor=FINAL_RATE
        )
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@partial(jax.jit, static_argnums=(0, 1))
def _update(optimizer, num_neighbors: int, weights: FilterWeights, state: Any, sector: SectorPairs):
    gradient, told = jax.grad(filter_loss, has_aux=True)(weights, sector, num_neighbors)
    updates, state = optimizer.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, told


def _told(metrics: FilterMetrics) -> dict[str, float]:
    names = ("pairs", "first", "second")
    losses = {f"loss_{name}": float(x) for name, x in zip(names, metrics.losses, strict=True)}
    kept = {f"kept_before_{name}": float(x) for name, x in zip(names, metrics.kept, strict=True)}
    return losses | kept


def _write_state(path: Path, step: int, state: Any) -> None:
    arrays: dict[str, Any] = {
        name: np.asarray(leaf, np.float32) for name, leaf in by_name(state).items()
    }
    write_npz(path, _STATE, arrays | {"step": step})


def _read_state(path: Path, begin: Any) -> tuple[int, Any]:
    """Steps done and state; those to begin with where there is no file."""
    if not path.is_file():
        return 0, begin
    arrays = read_npz(path, _STATE)
    step = int(arrays.pop("step"))
    wanted = by_name(begin)
    if {name: np.shape(leaf) for name, leaf in wanted.items()} != {
        name: array.shape for name, array in arrays.items()
    }:
        raise UserError(f"{path}: the state of a filter of another width; remove it to train anew.")
    _LOG.info("resuming the filter from step %d", step)
    leaves = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in wanted.items()]
    return step, jax.tree.unflatten(jax.tree.structure(begin), leaves)
