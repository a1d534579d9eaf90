"""Host side: finds and reads events of any format: TrackML, ACTS, ColliderML, event files."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.acts_csv import list_acts_events, read_acts_event
from hypertrack_jax.events.archives import base_name, opened, read_file
from hypertrack_jax.events.colliderml import (
    ColliderEvent,
    list_colliderml_events,
    read_colliderml_events,
)
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.store import FORMAT, read_event_file
from hypertrack_jax.events.trackml import list_event_ids, read_event
from hypertrack_jax.npz import read_npz

_STORED_NAME = re.compile(r"event(\d{1,18})\.npz")
_EVENT_NAME = re.compile(r"event(\d{1,18})(-(hits|truth|particles|cells)\.csv(\.gz)?)?", re.I)
_ACTS_HITS = re.compile(r"event\d{1,18}-(hits|simhits)\.csv(\.gz)?", re.I)


class EventPlace(NamedTuple):
    """Where an event is."""

    source: Path
    """An event file, a directory or zip of csv files, or a directory of ColliderML's tables."""
    event_id: int
    """Number of the event."""
    form: Literal["stored", "trackml", "acts", "colliderml"] = "trackml"
    """What kind of files these are."""


def find_events(paths: Sequence[str | Path]) -> list[EventPlace]:
    """The events at some paths.

    Args:
      paths: directories of csv files of TrackML or of ACTS at any depth, of event files, or of
        both; zips of csv files; directories of ColliderML's Parquet tables; event files; and single
        events, `DIRECTORY/event000001000` or one of its files.

    Returns:
      The events by number.

    Raises:
      FileNotFoundError: there is nothing at a path.
      UserError: a path holds no event, or two places hold one of the same number.
      MissingPackageError: ColliderML's tables need pyarrow, which is not installed.
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
    """Reads an event; `lenient` is that of `read_event` and acts on TrackML's events alone.

    Raises:
      OSError: a file is missing or cannot be opened.
      UserError: a file is damaged, or not what it should be.
    """
    if place.form == "stored":
        return read_event_file(place.source)
    if place.form == "acts":
        return read_acts_event(place.source, place.event_id)
    if place.form == "colliderml":
        return next(read_colliderml_events(place.source, [place.event_id])).event
    return read_event(place.source, place.event_id, lenient=lenient)


def reader_of(
    places: Sequence[EventPlace], *, lenient: bool = False
) -> Callable[[EventPlace], Event]:
    """A function that reads events as `read_place` does, to be called in the order of `places`.

    It reads each of ColliderML's tables, which hold many events, once if the events come in the
    order of the tables.
    """
    wanted: dict[Path, list[int]] = {}
    for place in places:
        if place.form == "colliderml":
            wanted.setdefault(place.source, []).append(place.event_id)
    streams = {source: read_colliderml_events(source, ids) for source, ids in wanted.items()}
    ahead: dict[Path, ColliderEvent] = {}

    def read(place: EventPlace) -> Event:
        stream: Iterator[ColliderEvent] = streams.get(place.source, iter(()))
        found = ahead.pop(place.source, None) or next(stream, None)
        if found is not None and found.event.event_id == place.event_id:
            return found.event
        # The tables have another order, or an earlier event could not be read.
        if found is not None:
            ahead[place.source] = found
        return read_place(place, lenient=lenient)

    return read


def _events_at(path: Path) -> list[EventPlace]:
    single = _EVENT_NAME.fullmatch(path.name)
    if single and not path.is_dir() and (single[2] is None or path.is_file()):
        return [_single(path, single[1])]
    if path.is_file() and path.suffix == ".npz":
        return [EventPlace(path, _stored_number(path), "stored")]
    if _has_acts(path):
        places = [EventPlace(path, number, "acts") for number in list_acts_events(path)]
    else:
        places = [EventPlace(path, number) for number in list_event_ids(path)]
    if path.is_dir():
        stored = [file for file in path.iterdir() if _STORED_NAME.fullmatch(file.name)]
        places += [EventPlace(file, _stored_number(file), "stored") for file in stored]
        if next(path.rglob("*.parquet"), None) is not None:
            numbers = list_colliderml_events(path)
            places += [EventPlace(path, number, "colliderml") for number in numbers]
    if not places:
        raise UserError(
            f"{path}: no event in it; expected event*-hits.csv[.gz] of TrackML or ACTS, *.parquet "
            "of ColliderML, or event*.npz as experiments/process_data.py writes them."
        )
    return places


def _has_acts(path: Path) -> bool:
    """Whether the csv files of a directory or zip are of ACTS, to judge by one of them."""
    with opened(path) as files:
        names = [name for name in files if _ACTS_HITS.fullmatch(base_name(name))]
        return bool(names) and _is_acts(files[min(names)]())


def _is_acts(hits: bytes) -> bool:
    """Whether a table of hits has the column that only ACTS has."""
    return b"geometry_id" in hits[:4096].splitlines()[0] if hits else False


def _single(path: Path, digits: str) -> EventPlace:
    """One event of TrackML or ACTS in a directory."""
    names = [path.with_name(f"event{digits}-hits.csv{end}") for end in ("", ".gz")]
    if not any(name.is_file() for name in names):
        raise FileNotFoundError(f"{names[0]}: no such file; name an event whose hits are there.")
    is_acts = any(name.is_file() and _is_acts(read_file(name)) for name in names)
    return EventPlace(path.parent, int(digits), "acts" if is_acts else "trackml")


def _stored_number(path: Path) -> int:
    """Number of the event, from the name of its file; only a file of another name is opened."""
    name = _STORED_NAME.fullmatch(path.name)
    return int(name[1]) if name else int(read_npz(path, FORMAT, ["event_id"])["event_id"])
