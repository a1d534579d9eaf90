"""Host side: events for Phoenix, the event display of the HEP Software Foundation.

The format is that of guides/developers/event_data_format.md in https://github.com/HSF/phoenix.
Lengths are in mm, momenta in GeV.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer
from numpy.typing import ArrayLike

from hypertrack_jax.evaluation.event_page import LOST_COLOUR, whole_labels
from hypertrack_jax.evaluation.metrics import NO_CLUSTER, match_tracks
from hypertrack_jax.evaluation.plots import MISTAKE_COLOUR, TRACK_COLOURS
from hypertrack_jax.evaluation.track_shapes import track_shapes
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.files import replace_file


def write_phoenix(path: Path, event: Event, hit_label: ArrayLike, min_hits: int = 4) -> Path:
    """Writes an event with its tracks as a file that Phoenix opens.

    With truth there are three collections: matched tracks, fake tracks and lost particles. Without,
    there is one of all tracks. A track has its number, its hits from the origin outwards and, if it
    is bent, the pT of its `track_shapes`. Matched tracks and lost particles have the id and the
    true pT of the particle. Phoenix draws tracks of at least three hits.

    Args:
      path: the file to write, .json.
      event: the event.
      hit_label: track of each hit, as in `metrics.track_scores`.
      min_hits: as in `metrics.match_tracks`.

    Returns:
      `path`.

    Raises:
      UserError: the labels are not one integer per hit.
      OSError: the file cannot be written.
    """
    label = whole_labels(event, hit_label)
    content = {
        f"Event {event.event_id}": {
            "event number": event.event_id,
            "run number": 0,
            "Hits": {
                "Hits in tracks": _points(event.position[label >= 0]),
                "Hits in no track": _points(event.position[label < 0]),
            },
            "Tracks": _tracks(event, label, min_hits),
        }
    }
    with replace_file(path) as file:
        file.write(json.dumps(content, allow_nan=False, separators=(",", ":")).encode())
    return path


def _tracks(
    event: Event, label: Int[np.ndarray, " hit"], min_hits: int
) -> dict[str, list[dict[str, Any]]]:
    """The collections of tracks."""
    numbers, cluster = np.unique(label[label >= 0], return_inverse=True)
    of_hit = np.full(len(label), NO_CLUSTER, np.int64)
    of_hit[label >= 0] = cluster
    pt = track_shapes(event.position, of_hit)["pT (GeV)"]
    if not event.has_truth:
        names = np.full(len(numbers), NOISE)
    else:
        matching = match_tracks(event, label, min_hits)
        names = matching.particle
    particles, true_pt = event.particles, np.hypot(*event.particles.momentum[:, :2].T)
    found: list[dict[str, Any]] = []
    for number, hits in _grouped(event, of_hit):
        track = {"track": int(numbers[number]), "pos": _points(event.position[hits])}
        if np.isfinite(pt[number]):
            track["pT"] = round(float(pt[number]), 4)
        track["color"] = _colour(TRACK_COLOURS[number % len(TRACK_COLOURS)])
        if names[number] != NOISE:
            # As text: JavaScript rounds whole numbers from 2^53 on.
            track["particle"] = str(particles.particle_id[names[number]])
            track["true pT"] = round(float(true_pt[names[number]]), 4)
        found.append(track)
    if not event.has_truth:
        return {"Tracks": found}
    is_lost = matching.particle_size >= min_hits
    is_lost[names[names != NOISE]] = False
    lost = [
        {
            "particle": str(particles.particle_id[particle]),
            "pos": _points(event.position[hits]),
            "pT": round(float(true_pt[particle]), 4),
            "color": _colour(LOST_COLOUR),
        }
        for particle, hits in _grouped(event, event.hit_particle)
        if is_lost[particle]
    ]
    fake = [
        track | {"color": _colour(MISTAKE_COLOUR)} for track in found if "particle" not in track
    ]
    matched = [track for track in found if "particle" in track]
    return {"Matched tracks": matched, "Fake tracks": fake, "Lost particles": lost}


def _grouped(
    event: Event, group: Integer[np.ndarray, " hit"]
) -> Iterator[tuple[int, Int[np.ndarray, " member"]]]:
    """The hits of each group from the origin outwards; negative is none."""
    order = np.lexsort([np.linalg.norm(event.position, axis=1), group])
    order = order[group[order] >= 0]
    if len(order):
        for hits in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            yield int(group[hits[0]]), hits


def _points(position: Float[np.ndarray, "hit 3"]) -> list[list[float]]:
    """Positions to a micrometre."""
    return np.round(position.astype(np.float64), 3).tolist()


def _colour(name: str) -> str:
    """`#CC3311` as Phoenix reads it."""
    return name.replace("#", "0x")
