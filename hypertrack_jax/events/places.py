"""Host side: events wherever they lie: TrackML directories and zips, single events, event files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.store import FORMAT, read_event_file
from hypertrack_jax.events.trackml import list_event_ids, read_event
from hypertrack_jax.npz import read_npz

_STORED_NAME = re.compile(r"event(\d{1,18})\.npz")
_EVENT_NAME = re.compile(r"event(\d{1,18})(-(hits|truth|particles|cells)\.csv(\.gz)?)?", re.I)


class EventPlace(NamedTuple):
    """Where an event lies."""

    source: Path
    """An event file, or a directory or zip of TrackML files."""
    event_id: int
    """Number of the event."""


def find_events(paths: Sequence[str | Path]) -> list[EventPlace]:
    """The events at some paths.

    Args:
      paths: directories of TrackML files at any depth, of event files, or of both; zips of TrackML
        files; event files; and single events, `DIRECTORY/event000001000` or one of its files.

    Returns:
      The events by number.

    Raises:
      FileNotFoundError: there is nothing at a path.
      UserError: a path holds no event, or two places hold one of the same number.
    """
    found: dict[int, EventPlace] = {}
    for place in (place for path in paths for place in _events_at(Path(path).expanduser())):
        other = found.setdefault(place.event_id, place)
        if other is not place and other != place:
            raise UserError(
                f"event {place.event_id} is in {other.source} and in {place.source}; give one of "
                "the two, or reconstruct them into two directories."
            )
    return [found[number] for number in sorted(found)]


def read_place(place: EventPlace, *, lenient: bool = False) -> Event:
    """Reads an event, where it is a TrackML event as `read_event` does.

    Raises:
      OSError: a file is missing or cannot be opened.
      UserError: a file is damaged, or not what it should be.
    """
    if _is_stored(place.source):
        return read_event_file(place.source)
    return read_event(place.source, place.event_id, lenient=lenient)


def _events_at(path: Path) -> list[EventPlace]:
    single = _EVENT_NAME.fullmatch(path.name)
    if single and not path.is_dir() and (single[2] is None or path.is_file()):
        return [_single(path, single[1])]
    if path.is_file() and _is_stored(path):
        return [EventPlace(path, _stored_number(path))]
    places = [EventPlace(path, number) for number in list_event_ids(path)]
    if path.is_dir():
        stored = [file for file in path.iterdir() if _STORED_NAME.fullmatch(file.name)]
        places += [EventPlace(file, _stored_number(file)) for file in stored]
    if not places:
        raise UserError(
            f"{path}: no event in it; expected event*-hits.csv[.gz] of TrackML, or event*.npz as "
            "experiments/process_data.py writes them."
        )
    return places


def _single(path: Path, digits: str) -> EventPlace:
    """One TrackML event of a directory."""
    names = [path.with_name(f"event{digits}-hits.csv{end}") for end in ("", ".gz")]
    if not any(name.is_file() for name in names):
        raise FileNotFoundError(f"{names[0]}: no such file; name an event whose hits are there.")
    return EventPlace(path.parent, int(digits))


def _stored_number(path: Path) -> int:
    """By its name; only a file of another name is opened."""
    name = _STORED_NAME.fullmatch(path.name)
    return int(name[1]) if name else int(read_npz(path, FORMAT, ["event_id"])["event_id"])


def _is_stored(path: Path) -> bool:
    return path.suffix == ".npz"
