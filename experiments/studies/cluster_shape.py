"""Host side: how much the shape of clusters helps a pair filter, on simulated and real events.

The pair filter is trained twice on simulated events alone, without and with the inputs of the
clusters. The measure is the share of false pairs kept at 0.98 of the true ones, on other simulated
events and on a real one.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Float32, Int

from hypertrack_jax.events.event import NOISE, Event, Particles
from hypertrack_jax.networks.cluster_shape import NUM_SHAPE, padded_clusters, shape_inputs
from hypertrack_jax.networks.edge_filter import (
    NUM_PAIR,
    Layers,
    apply_layers,
    init_layers,
    is_outer,
    pair_inputs,
)
from hypertrack_jax.networks.features import helix_coordinates
from hypertrack_jax.reconstruction.candidates import raw_pairs_of
from hypertrack_jax.streams import stream
from hypertrack_jax.training.optimizer import learning_rate_schedule
from hypertrack_jax.tunes.tune import OptimizerTune
from hypertrack_jax.voxdyn.hit_pairs import pair_block
from hypertrack_jax.voxdyn.model import VoxelDynamics

EFFICIENCY = 0.98
FAR = 100.0
"""Particles made further from the beam line than this, in mm, have a row of their own."""
PROMPT = 1.0
"""Particles made nearer to the beam line than this, in mm, count as prompt."""
OF_FAR = f"efficiency of pairs from beyond {FAR:g} mm"
WIDTH, BATCH = 32, 32768
LEARNING_RATE = 4e-3
GROUPS = {
    "pixels": (7, 8, 9),
    "pixel barrel": (8,),
    "pixel disks": (7, 9),
    "short strips": (12, 13, 14),
    "long strips": (16, 17, 18),
}
"""Volumes in which both hits of a pair lie."""


class PairSample(NamedTuple):
    """The candidate pairs of some events."""

    inputs: Float32[np.ndarray, "pair feat"]
    """Inputs of the pair filter, then those of the clusters."""
    particle: Int[np.ndarray, " pair"]
    """The particle of both hits, or -1 for a false pair."""
    volume: Int[np.ndarray, "pair 2"]
    """Volumes of both hits."""
    radius: Float[np.ndarray, " pair"]
    """Distance of the particle's origin from the beam line in mm; 0 for a false pair."""


class Answers(NamedTuple):
    """The `measures` of the filters without and with shape on one sample."""

    without: Mapping[str, float]
    with_shape: Mapping[str, float]


def rotated_copies(event: Event, num_copies: int, rng: np.random.Generator) -> Event:
    """The event several times over, each copy turned about the beam line with its modules."""
    parts = [_turned(event, angle) for angle in rng.uniform(0, 2 * np.pi, num_copies)]
    num_particles = len(event.particles.particle_id)
    shifted = [
        np.where(part.hit_particle == NOISE, NOISE, part.hit_particle + copy * num_particles)
        for copy, part in enumerate(parts)
    ]
    particles = Particles(*map(np.concatenate, zip(*(p.particles for p in parts), strict=True)))
    cells = None
    if event.cells is not None:
        of_parts = [part.cells for part in parts if part.cells is not None]
        cells = type(event.cells)(*map(np.concatenate, zip(*of_parts, strict=True)))
    return event._replace(
        position=np.concatenate([part.position for part in parts]),
        hit_id=np.arange(num_copies * len(event.hit_id)),
        hit_particle=np.concatenate(shifted).astype(np.int32),
        hit_weight=np.tile(event.hit_weight, num_copies) / num_copies,
        module=np.tile(event.module, (num_copies, 1)),
        particles=particles._replace(particle_id=np.arange(num_copies * num_particles)),
        cells=cells,
    )


def pair_sample(
    events: Iterable[Event], voxdyn: VoxelDynamics, min_count: float | int
) -> PairSample:
    """The candidate pairs of events that have cells."""
    parts = [_pairs_of(event, voxdyn, min_count) for event in events]
    return PairSample(*map(np.concatenate, zip(*parts, strict=True)))


def trained_both(sample: PairSample, num_steps: int, seed: int) -> tuple[Layers, Layers]:
    """Pair filters without and with the inputs of the clusters."""
    sizes = NUM_PAIR, NUM_PAIR + NUM_SHAPE
    first, second = (train_pairs(sample, size, num_steps, seed) for size in sizes)
    return first, second


def thresholds_of(layers: tuple[Layers, Layers], sample: PairSample) -> tuple[float, float]:
    """The thresholds at which both filters keep `EFFICIENCY` of the true pairs."""
    first, second = (_threshold(pair_logits(one, sample), sample.particle >= 0) for one in layers)
    return first, second


def answers_of(
    layers: tuple[Layers, Layers], thresholds: tuple[float, float], sample: PairSample
) -> Answers:
    """What both filters do with a sample, at its own thresholds and at those given."""
    first, second = (
        measures(pair_logits(one, sample), sample, threshold)
        for one, threshold in zip(layers, thresholds, strict=True)
    )
    return Answers(first, second)


def train_pairs(sample: PairSample, num_inputs: int, num_steps: int, seed: int) -> Layers:
    """A pair filter on the first `num_inputs` inputs; true and false pairs weigh the same."""
    layers = init_layers(jax.random.key(seed), (num_inputs, WIDTH, WIDTH, 1))
    cosine = OptimizerTune(
        learning_rate=LEARNING_RATE, scheduler_type="cos", period=num_steps, floor=0.02
    )
    optimizer = optax.adam(learning_rate_schedule(cosine))
    state = optimizer.init(layers)
    rng = stream("pairs to train on", seed)
    is_true = sample.particle >= 0
    weight = np.where(is_true, 1 / is_true.mean(), 1 / (1 - is_true.mean())).astype(np.float32)

    @jax.jit
    def step(layers, state, inputs, is_true, weight):
        def loss(layers):
            logit = apply_layers(layers, inputs)
            return (weight * jax.nn.softplus(jnp.where(is_true, -logit, logit))).mean()

        updates, state = optimizer.update(jax.grad(loss)(layers), state, layers)
        return optax.apply_updates(layers, updates), state

    for _ in range(num_steps):
        rows = rng.integers(len(is_true), size=BATCH)
        layers, state = step(
            layers, state, sample.inputs[rows, :num_inputs], is_true[rows], weight[rows]
        )
    return layers


def pair_logits(layers: Layers, sample: PairSample) -> Float[np.ndarray, " pair"]:
    """Scores of the pairs of a sample, in blocks of one size."""
    num_inputs = layers[0]["kernel"].shape[0]
    apply, num_pairs = jax.jit(apply_layers), len(sample.particle)
    logits = []
    for first in range(0, num_pairs, BATCH):
        block = sample.inputs[first : first + BATCH, :num_inputs]
        block = np.pad(block, ((0, BATCH - len(block)), (0, 0)))
        logits.append(np.asarray(apply(layers, block)))
    return np.concatenate(logits)[:num_pairs]


def false_kept(
    logit: Float[np.ndarray, " pair"],
    is_true: Bool[np.ndarray, " pair"],
) -> float:
    """The share of the false pairs kept where `EFFICIENCY` of the true ones are."""
    if not is_true.any() or is_true.all():
        return np.nan
    return float((logit[~is_true] >= _threshold(logit, is_true)).mean())


def measures(
    logit: Float[np.ndarray, " pair"], sample: PairSample, given: float
) -> dict[str, float]:
    """False pairs kept, all and by group of volumes; the efficiency of pairs from far away.

    The last two are at the threshold `given`, the others at the sample's own.
    """
    is_true = sample.particle >= 0
    found = {"all": false_kept(logit, is_true)}
    is_prompt = ~is_true | (sample.radius < PROMPT)
    found["all, prompt particles"] = false_kept(logit[is_prompt], is_true[is_prompt])
    for name, volumes in GROUPS.items():
        here = np.isin(sample.volume, volumes).all(axis=1)
        found[name] = false_kept(logit[here], is_true[here])
    is_far = is_true & (sample.radius > FAR)
    is_kept = logit[is_far] >= _threshold(logit, is_true)
    found[OF_FAR] = float(is_kept.mean()) if is_far.any() else np.nan
    found["all, at the threshold of training"] = float((logit[~is_true] >= given).mean())
    found["efficiency of pairs at that threshold"] = float((logit[is_true] >= given).mean())
    return found


def table_rows(simulated: Sequence[Answers], real: Sequence[Answers]) -> list[list[str]]:
    """Means without and with shape and their ratio, simulated and real; and the ratio of ratios."""
    rows = []
    for what in simulated[0].without:
        row, gains = [what], []
        for answers in (simulated, real):
            pairs = np.array([(a.without[what], a.with_shape[what]) for a in answers])
            gain = pairs[:, 1] / pairs[:, 0]
            gains.append(np.nanmean(gain))
            without, with_shape = np.nanmean(pairs, axis=0)
            spread = f" ± {np.nanstd(gain, ddof=1):.3f}" if answers is simulated else ""
            row += [f"{without:.3f}", f"{with_shape:.3f}", f"{gains[-1]:.3f}{spread}"]
        rows.append([*row, f"{gains[0] / gains[1]:.2f}"])
    return rows


def _threshold(logit: np.ndarray, is_true: np.ndarray) -> float:
    return float(np.quantile(logit[is_true], 1 - EFFICIENCY))


def _turned(event: Event, angle: float) -> Event:
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    cells = event.cells
    if cells is not None:
        cells = cells._replace(frame=(cells.frame @ turn.T).astype(np.float32))
    particles = event.particles._replace(
        vertex=(event.particles.vertex @ turn.T).astype(np.float32),
        momentum=(event.particles.momentum @ turn.T).astype(np.float32),
    )
    position = (event.position @ turn.T).astype(np.float32)
    return event._replace(position=position, particles=particles, cells=cells)


def _pairs_of(event: Event, voxdyn: VoxelDynamics, min_count: float | int) -> PairSample:
    assert event.cells is not None
    lists, padded = raw_pairs_of(voxdyn, event.position, min_count)
    clusters = padded_clusters(event.cells, len(padded.position))
    num_raw, size = int(lists.num_raw), 2**16
    parts = [
        _block_inputs(lists, padded.position, clusters, jnp.int32(first), size)
        for first in range(0, num_raw, size)
    ]
    one, other, inputs, mask = (
        np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(4)
    )
    one, other, inputs = one[mask], other[mask], inputs[mask]
    particle, num_particles = event.hit_particle, len(event.particles.particle_id)
    is_true = (particle[one] == particle[other]) & (particle[one] != NOISE)
    vertex = np.append(event.particles.vertex, np.zeros((1, 3)), axis=0)
    of_pair = np.where(is_true, particle[one], num_particles)
    return PairSample(
        inputs=inputs,
        particle=np.where(is_true, particle[one], -1),
        volume=np.stack([event.module[one, 0], event.module[other, 0]], axis=1),
        radius=np.hypot(vertex[of_pair, 0], vertex[of_pair, 1]),
    )


@partial(jax.jit, static_argnums=4)
def _block_inputs(lists, position, clusters, first, size):
    block = pair_block(lists, first, size=size)
    coordinates = helix_coordinates(position)
    inputs = pair_inputs(coordinates, lists.degree, block.one, block.other, block.count)
    is_swapped = is_outer(coordinates[block.one], coordinates[block.other])
    inner = jnp.where(is_swapped, block.other, block.one)
    outer = jnp.where(is_swapped, block.one, block.other)
    shape = shape_inputs(coordinates, clusters, inner, outer)
    return block.one, block.other, jnp.concatenate([inputs, shape], axis=1), block.mask
