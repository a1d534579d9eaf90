"""Host side: what an event is.

An event is the list of hits that one beam crossing left in the detector and, where it is known,
which particle made each hit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.cells import Cells, take_cells

NOISE = -1
"""The value of `Event.hit_particle` for a hit that no particle made."""


class Particles(NamedTuple):
    """The particles of one event, one entry per particle."""

    particle_id: Int64[np.ndarray, " particle"]
    """The particle's id in its file; never 0, which stands for noise in TrackML.

    TrackML's ids are unsigned: one from 2^63 on is negative here, with the same 64 bits.
    """
    vertex: Float32[np.ndarray, "particle 3"]
    """Production point x, y, z, in mm."""
    momentum: Float32[np.ndarray, "particle 3"]
    """Momentum at the production point, px, py, pz, in GeV."""
    charge: Int32[np.ndarray, " particle"]
    """Electric charge in units of the positron's."""
    num_hits: Int32[np.ndarray, " particle"]
    """Number of hits of the particle in this event."""


class Event(NamedTuple):
    """One event; the hits' arrays share their order."""

    event_id: int
    """Number of the event, as in `event000001000`."""
    position: Float32[np.ndarray, "hit 3"]
    """Measured hit position x, y, z, in mm."""
    hit_id: Int64[np.ndarray, " hit"]
    """Unique id of the hit in its file; ids may have gaps."""
    hit_particle: Int32[np.ndarray, " hit"]
    """Index into `particles` of the particle that made the hit, or `NOISE`."""
    hit_weight: Float64[np.ndarray, " hit"]
    """Weight of the hit in the TrackML score; sums to 1 over a whole event, unless all are 0."""
    module: Int64[np.ndarray, "hit 3"]
    """Volume, layer and module number of the detector element that was hit."""
    particles: Particles
    """The particles; empty when there is no truth."""
    has_truth: bool
    """False for a file without truth: every hit is then `NOISE` and every weight 0."""
    cells: Cells | None = None
    """The clusters of cells of the hits; None where they are not known."""


def no_particles() -> Particles:
    """Particles of an event without any."""
    return Particles(
        particle_id=np.zeros(0, np.int64),
        vertex=np.zeros((0, 3), np.float32),
        momentum=np.zeros((0, 3), np.float32),
        charge=np.zeros(0, np.int32),
        num_hits=np.zeros(0, np.int32),
    )


def hits_of(event: Event) -> np.ndarray | Event:
    """The input of a reconstruction: the event if it has cells, else its positions."""
    return event.position if event.cells is None else event


def with_hits(event: Event, is_kept: Bool[np.ndarray, " hit"]) -> Event:
    """The event with some of its hits, in their order.

    `num_hits` counts the hits that are left. Particles without hits are dropped. Weights are not
    rescaled.
    """
    kept_particle = event.hit_particle[is_kept]
    num_particles = len(event.particles.particle_id)
    num_hits = np.bincount(kept_particle[kept_particle != NOISE], minlength=num_particles)
    is_left = num_hits > 0
    # One entry more than there are particles: noise hits, at index -1, find NOISE there.
    new_index = np.full(num_particles + 1, NOISE, np.int32)
    new_index[:-1][is_left] = np.arange(is_left.sum())
    particles = event.particles._replace(num_hits=num_hits.astype(np.int32))
    return choose_hits(event, is_kept)._replace(
        hit_particle=new_index[kept_particle],
        particles=Particles(*(field[is_left] for field in particles)),
    )


def choose_hits(event: Event, chosen: np.ndarray) -> Event:
    """The event with the hits that a mask or indices choose; its particles do not change."""
    names = ("position", "hit_id", "hit_particle", "hit_weight", "module")
    arrays = {name: getattr(event, name)[chosen] for name in names}
    return event._replace(**arrays, cells=take_cells(event.cells, chosen))


def validate_event(event: Event, source: str) -> Event:
    """Returns `event` if its arrays fit together and its values are usable.

    Args:
      event: the event to check.
      source: the file, or whatever else the user would look into, for the message.

    Returns:
      The event itself.

    Raises:
      UserError: `event_id` is out of range; a field is not a NumPy array, or is masked; there are
        no hits; arrays have different lengths; a coordinate or a weight is not finite; a cluster is
        not possible; a hit id occurs twice; a particle index is outside the particles.
    """
    if not 0 <= event.event_id < 2**63:
        raise UserError(
            f"{source}: event_id is {event.event_id}; expected a whole number from 0 to 2^63 - 1."
        )
    cells = {} if event.cells is None else event.cells._asdict()
    for name, array in (event._asdict() | event.particles._asdict() | cells).items():
        if name in ("event_id", "particles", "has_truth", "cells"):
            continue
        # An event file cannot hold a mask.
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise UserError(
                f"{source}: {name} is a {type(array).__name__}, where a NumPy array is expected; "
                "convert it."
            )
    num_hits = len(event.position)
    if num_hits == 0:
        raise UserError(f"{source}: the event has no hits; leave it out of the event range.")
    names = ("hit_id", "hit_particle", "hit_weight", "module")
    for name, array in ({name: getattr(event, name) for name in names} | cells).items():
        if len(array) != num_hits:
            raise UserError(
                f"{source}: {name} has {len(array)} entries for {num_hits} hits; "
                "make the event file anew."
            )
    finite = np.isfinite(event.position).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"{source}: hit {event.hit_id[bad]} has the position {event.position[bad].tolist()}, "
            "which is not finite; correct or remove the hit."
        )
    if not np.isfinite(event.hit_weight).all():
        bad = int(np.flatnonzero(~np.isfinite(event.hit_weight))[0])
        raise UserError(
            f"{source}: hit {event.hit_id[bad]} has the weight {event.hit_weight[bad]}, which is "
            "not finite; correct it."
        )
    if event.cells is not None:
        _require_clusters(event.cells, event.hit_id, source)
    hit_ids, occurrences = np.unique(event.hit_id, return_counts=True)
    if (occurrences > 1).any():
        raise UserError(
            f"{source}: hit_id {hit_ids[occurrences > 1][0]} occurs more than once; "
            "hit ids must be unique within an event."
        )
    num_particles = len(event.particles.particle_id)
    if event.hit_particle.min() < NOISE or event.hit_particle.max() >= num_particles:
        raise UserError(
            f"{source}: a hit points to a particle outside the {num_particles} of the event; "
            "make the event file anew."
        )
    return event


def _require_clusters(cells: Cells, hit_id: np.ndarray, source: str) -> None:
    """Refuses clusters that no cells can have."""
    is_empty = cells.num_cells == 0
    is_bad = (cells.num_cells < 0) | ((cells.extent < 1) != is_empty[:, None]).any(axis=1)
    is_bad |= ~np.isfinite(cells.charge) | ~np.isfinite(cells.slant)
    is_bad |= ~np.isfinite(cells.frame).all(axis=(1, 2))
    if is_bad.any():
        raise UserError(
            f"{source}: the cluster of hit {hit_id[np.argmax(is_bad)]} has an extent that does not "
            "fit its number of cells, or a value that is not finite; make the event file anew."
        )
