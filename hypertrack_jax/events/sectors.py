"""Host side: azimuth sectors of events, in which hits are as dense as in the whole event.

A network that is trained on thinned events has seen only their low density, and the graph of a full
event does not fit into a training step. A sector has the full density and fits. Its core is a range
of azimuth, and a halo on either side gives the hits of the core their neighbours. Azimuth wraps
around.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import Event, with_hits
from hypertrack_jax.events.store import event_size

HALO = 0.1
"""Width of the halo on either side of the core, in radians: 90 % of the edges within particles
span less."""


class Sector(NamedTuple):
    """A part of an event."""

    event: Event
    """The hits of core and halo, in their former order, see `with_hits`. Weights are those of the
    whole event."""
    is_core: Bool[np.ndarray, " hit"]
    """True for hits of the core."""


def whole(event: Event) -> Sector:
    """The whole event as a sector; all of it is core."""
    return Sector(event, np.ones(len(event.position), np.bool_))


def draw_sector(
    event: Event, num_hits: int, rng: np.random.Generator, halo: float = HALO
) -> Sector:
    """A sector at a random azimuth.

    Every hit lies in the core with the same probability, whatever its azimuth.

    Args:
      event: the event.
      num_hits: mean number of hits in core and halo. An event with no more hits is returned whole,
        all of it as core.
      rng: source of randomness.
      halo: width of the halo on either side, in radians.

    Returns:
      The sector; its core has at least one hit.

    Raises:
      UserError: a sector of `num_hits` hits is no wider than its halo.
    """
    if num_hits >= len(event.position):
        return whole(event)
    core = _core_width(event.event_id, len(event.position), num_hits, halo)
    azimuth = np.arctan2(event.position[:, 1], event.position[:, 0])
    while True:
        behind = (azimuth - rng.uniform(0, 2 * np.pi)) % (2 * np.pi)
        is_core = behind < core
        if is_core.any():
            break
    is_inside = (behind < core + halo) | (behind >= 2 * np.pi - halo)
    return Sector(with_hits(event, is_inside), is_core[is_inside])


def require_sectors(
    directory: Path, event_ids: Sequence[int], num_hits: int, halo: float = HALO
) -> None:
    """Checks that sectors of all events have a core, so that a training fails at once, not late.

    Raises:
      UserError: a sector of `num_hits` hits of an event is no wider than its halo.
      OSError: the file of an event cannot be read.
    """
    for event_id in event_ids:
        _core_width(event_id, event_size(directory, event_id), num_hits, halo)


def _core_width(event_id: int, event_hits: int, num_hits: int, halo: float) -> float:
    """Width of the core in radians."""
    width = 2 * np.pi * num_hits / event_hits
    if num_hits < event_hits and width <= 2 * halo:
        raise UserError(
            f"a sector of {num_hits} of the {event_hits} hits of event {event_id} "
            f"spans {width:.3f} rad, no more than its halo of {2 * halo:.3f} rad; "
            f"take at least {int(halo / np.pi * event_hits) + 1} hits."
        )
    return width - 2 * halo
