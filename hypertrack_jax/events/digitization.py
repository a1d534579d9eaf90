"""Host side: what the detector measures of the particles that cross it.

Simulated crossings get the position resolution, the noise, the clusters and the hit weights of the
real TrackML event that `kinematics` describes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from hypertrack_jax.events.cells import FiredCells, cluster_cells
from hypertrack_jax.events.event import NOISE, Event, Particles
from hypertrack_jax.events.kinematics import GeneratedParticles, charge_of
from hypertrack_jax.events.modules import Modules, module_channels, module_frames

# Standard deviation of measured minus true position along the axes u and v of a module, in mm, by
# volume: the 5527 hits of the real event in `kinematics`, turned into their modules' frames. Mirror
# volumes are taken together. In the barrels the drift of charge in the field also shifts u on every
# module, by 0.009 (volume 8), -0.015 (13) and -0.016 (17). That turns a layer as a whole: left out.
RESOLUTION = {
    **dict.fromkeys((7, 9), (0.0132, 0.0088)),
    8: (0.0062, 0.0118),
    **dict.fromkeys((12, 14), (0.0170, 0.296)),
    13: (0.0169, 0.259),
    **dict.fromkeys((16, 18), (0.0246, 2.85)),
    17: (0.0243, 3.05),
}

# Pitch along u and v, and depth, in mm: TrackML's detectors.csv, by volume.
CELL_SIZE = {
    **dict.fromkeys((7, 9), (0.05, 0.05625, 0.3)),
    8: (0.05, 0.05625, 0.15),
    **dict.fromkeys((12, 14), (0.08, 1.2, 0.5)),
    13: (0.08, 1.2, 0.25),
    **dict.fromkeys((16, 18), (0.12, 10.4, 0.7)),
    17: (0.12, 10.8, 0.35),
}

# In the real event the charge of a pixel is the length of the path in it, in mm, within 10 %.
# Strips have the charge 1. There is no threshold: cells with the shortest paths fire, too.
PIXEL_VOLUMES = (7, 8, 9)
CHARGE_NOISE = 0.1
MARGIN = 1e-6  # channels; paths end this far inside the module, so that rounding cannot matter

# 15.0 % of the real event's hits are noise. Pixel and strip modules alike have 0.04 noise hits per
# module, within the statistical error: so noise picks a module, then a place on it.
NOISE_RATIO = 0.15
# Clusters of noise in the real event look like those of particles whose polar angle and azimuth
# differ from those of the hit by up to this angle, in radians, uniformly.
NOISE_ANGLE = np.pi / 4
# In the real event no cluster, of noise or of a particle, has a path with a smaller cosine to the
# normal. The simulation keeps such hits of particles, 1 % of all, with their long clusters.
MIN_COSINE = 0.1

# TrackML weights (github.com/LAL/trackml-library, weights.py; Amrouche et al.): along a track the
# first and the last hits count most, and hard particles up to five times as much as soft ones. The
# constants reproduce the weights of the real event to 1e-5.
ORDER_WEIGHT = (10.0, 8.0, 6.0, 5.0, 3.0, 3.0, 3.0, 5.0, 6.0)
MIN_HITS_WITH_WEIGHT = 4
SOFT_PT, HARD_PT = 0.5, 3.0  # GeV
SOFT_WEIGHT, HARD_WEIGHT = 0.2, 1.0


class SimulatedEvent(NamedTuple):
    """An event, and what its hits would be with a perfect detector."""

    event: Event
    """The event as measured."""
    true_position: Float32[np.ndarray, "hit 3"]
    """Where the module was crossed, in mm; for noise, the measured position."""
    true_momentum: Float32[np.ndarray, "hit 3"]
    """Momentum of the particle there, in GeV; 0 for noise."""
    fired: FiredCells
    """The cells of the hits, computed at the true crossings."""


class Crossings(NamedTuple):
    """Crossings of modules by particles, before any measurement, in the order of simulation."""

    particle: Int64[np.ndarray, " hit"]
    """Index of the particle."""
    module: Int64[np.ndarray, " hit"]
    """Index of the module."""
    position: Float64[np.ndarray, "hit 3"]
    """Point on the module, in mm."""
    momentum: Float64[np.ndarray, "hit 3"]
    """Momentum on arrival, in GeV."""


def measure(
    event_id: int,
    particles: GeneratedParticles,
    crossings: Crossings,
    modules: Modules,
    rng: np.random.Generator,
    cell_rng: np.random.Generator,
) -> SimulatedEvent:
    """Smears the crossings, adds noise and cells, and puts the hits into TrackML's order.

    Args:
      event_id: number of the event.
      particles: the particles that `crossings` points to; those without crossings are listed with
        `num_hits` 0, as in TrackML's files.
      crossings: where the particles crossed modules.
      modules: the detector.
      rng: source of all randomness except that of the cells.
      cell_rng: source of randomness of the cells, separate so that they change nothing else.

    Returns:
      The event with full truth, its hits ordered by volume, layer and module.
    """
    noise_module, noise_position = _draw_noise(modules, len(crossings.particle), rng)
    num_noise = len(noise_module)
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    flight = np.abs(crossings.position - particles.vertex[crossings.particle])[:, 2]
    weight = hit_weights(crossings.particle, flight, pt, ~particles.is_material)

    module = np.concatenate([crossings.module, noise_module])
    hit_particle = np.concatenate([crossings.particle, np.full(num_noise, NOISE)])
    position = np.concatenate([_smear(modules, crossings, rng), noise_position])
    true_position = np.concatenate([crossings.position, noise_position])
    true_momentum = np.concatenate([crossings.momentum, np.zeros((num_noise, 3))])
    direction = [
        crossings.momentum,
        noise_directions(modules, noise_module, noise_position, cell_rng),
    ]
    # Modules are in the order of their geometry id, that is of volume, layer and number. Within a
    # module the order must say nothing about which hits are noise.
    order = np.lexsort((rng.random(len(module)), module))
    module, true_position = module[order], true_position[order]
    fired = fire_cells(modules, module, true_position, np.concatenate(direction)[order], cell_rng)
    event = Event(
        event_id=event_id,
        position=position[order].astype(np.float32),
        hit_id=np.arange(1, len(order) + 1),
        hit_particle=hit_particle[order].astype(np.int32),
        hit_weight=np.concatenate([weight, np.zeros(num_noise)])[order],
        module=modules.number[module].astype(np.int64),
        particles=Particles(
            particle_id=_particle_id(particles),
            vertex=particles.vertex.astype(np.float32),
            momentum=particles.momentum.astype(np.float32),
            charge=charge_of(particles.pdg),
            num_hits=np.bincount(crossings.particle, minlength=len(pt)).astype(np.int32),
        ),
        has_truth=True,
        cells=cluster_cells(
            fired, module_frames(modules)[module], module_channels(modules)[module]
        ),
    )
    return SimulatedEvent(
        event, true_position.astype(np.float32), true_momentum[order].astype(np.float32), fired
    )


def fire_cells(
    modules: Modules,
    module: Int64[np.ndarray, " hit"],
    position: Float64[np.ndarray, "hit 3"],
    direction: Float64[np.ndarray, "hit 3"],
    rng: np.random.Generator,
) -> FiredCells:
    """The cells that straight paths through modules fire, with the charge of each.

    Charge drifts along u in proportion to the depth it comes from; `Cells.frame` says how many
    channels a path covers. The drift does not move the middle of a path, as it does not move hits
    in `measure`. The part of a path outside the module is lost. The charge of a pixel is the length
    of the path in it, in mm, with noise; that of a strip is 1.

    Args:
      modules: the detector.
      module: index of the module of each hit.
      position: where the module was crossed, in mm.
      direction: direction of the particle there; any length but 0.
      rng: source of the noise of the charge.
    """
    crossed = np.einsum("hij,hj->hi", module_frames(modules)[module].astype(np.float64), direction)
    # Parallel to the plane, a path ends at the edges of the module.
    normal = np.where(np.abs(crossed[:, 2]) > 1e-6, crossed[:, 2], 1e-6)
    span = crossed[:, :2] / normal[:, None]
    num_channels = module_channels(modules)[module]
    local = np.einsum("hax,hx->ha", modules.axes[module], position - modules.center[module])
    middle = local / modules.pitch[module] + num_channels / 2
    middle = np.clip(middle, MARGIN, num_channels - MARGIN)
    at, hit = _borders(middle, span, *_inside(middle, span, num_channels))
    is_cell = hit[1:] == hit[:-1]
    share, center, hit = np.diff(at)[is_cell], (at[1:] + at[:-1])[is_cell] / 2, hit[1:][is_cell]
    channel = np.floor(middle[hit] + span[hit] * center[:, None]).astype(np.int64)
    length = np.linalg.norm(direction, axis=1) / np.abs(normal) * modules.thickness[module]
    charge = share * length[hit] * np.maximum(rng.normal(1, CHARGE_NOISE, len(hit)), 0)
    is_pixel = np.isin(modules.number[module[hit], 0], PIXEL_VOLUMES)
    return FiredCells(hit, channel, np.where(is_pixel, charge, 1).astype(np.float32))


def noise_directions(
    modules: Modules,
    module: Int64[np.ndarray, " hit"],
    position: Float64[np.ndarray, "hit 3"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, "hit 3"]:
    """Unit vectors of paths that would make the clusters of noise, see `NOISE_ANGLE`.

    Directions too near to the plane of the module, see `MIN_COSINE`, are drawn anew.
    """
    normal = np.cross(modules.axes[module, 0], modules.axes[module, 1])
    theta = np.arctan2(np.hypot(position[:, 0], position[:, 1]), position[:, 2])
    phi = np.arctan2(position[:, 1], position[:, 0])
    direction = np.zeros(position.shape)
    while (is_open := np.abs((direction * normal).sum(axis=1)) < MIN_COSINE).any():
        turn = rng.uniform(-NOISE_ANGLE, NOISE_ANGLE, (2, is_open.sum()))
        polar, azimuth = theta[is_open] + turn[0], phi[is_open] + turn[1]
        transverse = np.sin(polar)
        parts = transverse * np.cos(azimuth), transverse * np.sin(azimuth), np.cos(polar)
        direction[is_open] = np.stack(parts, axis=1)
    return direction


def hit_weights(
    hit_particle: Int64[np.ndarray, " hit"],
    flight: Float64[np.ndarray, " hit"],
    pt: Float64[np.ndarray, " particle"],
    has_weight: Bool[np.ndarray, " particle"],
) -> Float64[np.ndarray, " hit"]:
    """Weights of particle hits in the TrackML score.

    Args:
      hit_particle: index of the particle of every hit.
      flight: sort key of the hits of a particle; TrackML takes |z - z of the vertex|.
      pt: transverse momentum at production, in GeV.
      has_weight: False for particles whose hits have weight 0. Of the particles with 4 or more
        hits in the real event, these are exactly the 41 secondaries from material.

    Returns:
      Weights that sum to 1; 0 for particles with fewer than 4 hits. All 0 if no particle counts.
    """
    num_hits = np.bincount(hit_particle, minlength=len(pt))
    order = np.lexsort((flight, hit_particle))
    first = np.cumsum(num_hits) - num_hits
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first[hit_particle[order]]

    counts = has_weight & (num_hits >= MIN_HITS_WITH_WEIGHT)
    along_track = rank / np.maximum(num_hits - 1, 1)[hit_particle]
    weight = np.interp(along_track, np.linspace(0, 1, len(ORDER_WEIGHT)), ORDER_WEIGHT)
    weight /= np.bincount(hit_particle, weight, minlength=len(pt))[hit_particle]
    pt_weight = np.interp(pt, (SOFT_PT, HARD_PT), (SOFT_WEIGHT, HARD_WEIGHT))
    weight *= (counts * pt_weight)[hit_particle]
    total = weight.sum()
    return weight / total if total > 0 else weight


def _particle_id(particles: GeneratedParticles) -> np.ndarray:
    """Laid out as the bit fields of TrackML: collision, particle, and 1 for a secondary."""
    index = np.arange(1, len(particles.pdg) + 1)
    return ((particles.collision + 1) << 52) | (index << 24) | particles.is_material


def _smear(modules, crossings, rng):
    """The crossings with uniform errors in the module's plane; `RESOLUTION` is their sigma.

    Uniform, because a digital readout is wrong by at most half its pitch. The real event's
    residuals end there; a Gaussian of the same width would have tails.
    """
    table = np.zeros((max(RESOLUTION) + 1, 2))
    table[list(RESOLUTION)] = list(RESOLUTION.values())
    sigma = table[modules.number[crossings.module, 0]]
    local = np.sqrt(3) * sigma * rng.uniform(-1, 1, sigma.shape)
    return crossings.position + np.einsum("na,nax->nx", local, modules.axes[crossings.module])


def _draw_noise(modules, num_particle_hits, rng):
    """Modules and positions of noise hits; v is flat, and u is flat over the width at that v."""
    num = rng.poisson(num_particle_hits * NOISE_RATIO / (1 - NOISE_RATIO))
    module = rng.integers(len(modules.geometry_id), size=num)
    low, high, half_length = modules.half_size[module].T
    v, u = rng.uniform(-1, 1, (2, num))
    half_width = low + (high - low) * (v + 1) / 2
    local = np.stack([u * half_width, v * half_length], axis=1)
    position = modules.center[module] + np.einsum("na,nax->nx", local, modules.axes[module])
    return module, position


def _inside(middle, span, num_channels):
    """Part of each path, from -1/2 to 1/2, that is on the module."""
    span = np.where(span == 0, 1e-12, span)
    ends = np.sort([(MARGIN - middle) / span, (num_channels - MARGIN - middle) / span], axis=0)
    return np.maximum(ends[0].max(axis=1), -0.5), np.minimum(ends[1].min(axis=1), 0.5)


def _borders(middle, span, begin, end):
    """Where on each path, from -1/2 to 1/2, it begins, changes channel and ends; and which path."""
    at, path = [begin, end], [np.arange(len(span))] * 2
    for axis in (0, 1):
        place = [middle[:, axis] + span[:, axis] * part for part in (begin, end)]
        low, high = np.floor(np.minimum(*place)), np.floor(np.maximum(*place))
        number = (high - low).astype(np.int64)
        of_path = np.repeat(np.arange(len(span)), number)
        nth = np.arange(len(of_path)) - np.repeat(np.cumsum(number) - number, number)
        at.append((low[of_path] + 1 + nth - middle[of_path, axis]) / span[of_path, axis])
        path.append(of_path)
    at, path = np.concatenate(at), np.concatenate(path)
    # By path, then along it: a part of a path is at most 1/2 from its middle.
    order = np.argsort(2 * path + at)
    return at[order], path[order]
