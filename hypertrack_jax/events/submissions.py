"""Host side: reads tracks from files of event_id, hit_id, track_id: TrackML's and ColliderML's.

`trackml.write_submission` and `colliderml.write_colliderml_tracks` write them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.archives import read_file
from hypertrack_jax.events.colliderml import read_colliderml_tracks
from hypertrack_jax.events.csv_table import read_table
from hypertrack_jax.events.event import NOISE, Event

_COLUMNS = {"event_id": np.int64, "hit_id": np.int64, "track_id": np.int64}


class Submission(NamedTuple):
    """The tracks of one event, as a file has them."""

    path: Path
    hit_id: Int64[np.ndarray, " row"]
    track_id: Int64[np.ndarray, " row"]
    """0 or less for a hit in no track. Parquet numbers tracks from 0; 1 is added to these here."""


def submission_path(directory: Path, event_id: int) -> Path:
    """File of an event's tracks, such as `event000001000-submission.csv`."""
    return directory / f"event{event_id:09d}-submission.csv"


def read_submissions(path: str | Path) -> dict[int | None, Submission]:
    """The tracks in a file, or in all `*-submission.csv` of a directory, by number of the event.

    The number is None in a file without the column event_id, which holds the tracks of one event.
    A file `.parquet` is a submission of ColliderML, whose first track is 0.

    Raises:
      FileNotFoundError: there is no such file, or none in the directory.
      MissingPackageError: Parquet needs pyarrow.
      UserError: a file is not a table of whole numbers with these columns, or an event is in two
        files.
    """
    path = Path(path).expanduser()
    paths = sorted(path.glob("*-submission.csv")) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        what = "*-submission.csv in it" if path.is_dir() else "such file"
        raise FileNotFoundError(f"{path}: no {what}; name a csv file with hit_id and track_id.")
    found: dict[int | None, Submission] = {}
    for file in paths:
        for number, submission in _read(file).items():
            if number in found:
                raise UserError(
                    f"{file}: the tracks of this event are in {found[number].path}, too; remove "
                    "one of the two."
                )
            found[number] = submission
    return found


def submitted_label(submission: Submission, event: Event) -> Int64[np.ndarray, " hit"]:
    """The track of each hit of the event, -1 for none; a hit that is not submitted is in none.

    Raises:
      UserError: a hit is submitted twice, or is not in the event.
    """
    hit_id, track_id = submission.hit_id, submission.track_id
    numbers, occurrences = np.unique(hit_id, return_counts=True)
    if len(numbers) < len(hit_id):
        raise UserError(
            f"{submission.path}: hit_id {numbers[occurrences > 1][0]} of event {event.event_id} "
            "occurs more than once; give each hit one track."
        )
    order = np.argsort(event.hit_id)
    place = np.searchsorted(event.hit_id, hit_id, sorter=order)
    is_known = place < len(order)
    is_known[is_known] = event.hit_id[order[place[is_known]]] == hit_id[is_known]
    if not is_known.all():
        raise UserError(
            f"{submission.path}: hit_id {hit_id[~is_known][0]} is not in event {event.event_id}; "
            "these are the tracks of another event."
        )
    label = np.full(len(order), NOISE, np.int64)
    label[order[place]] = np.where(track_id > 0, track_id, NOISE)
    return label


def _read(path: Path) -> dict[int | None, Submission]:
    if path.suffix.lower() == ".parquet":
        columns = read_colliderml_tracks(path)
        table = np.empty(len(columns["hit_id"]), [*_COLUMNS.items()])
        for name, column in columns.items():
            table[name] = column
        table["track_id"] += 1
    else:
        table = read_table(str(path), read_file(path), _COLUMNS, optional=("event_id",))
    if "event_id" not in (table.dtype.names or ()):
        return {None: Submission(path, table["hit_id"].copy(), table["track_id"].copy())}
    table = table[np.argsort(table["event_id"], kind="stable")]
    numbers, first = np.unique(table["event_id"], return_index=True)
    parts = np.split(table, first[1:])
    return {
        int(number): Submission(path, part["hit_id"].copy(), part["track_id"].copy())
        for number, part in zip(numbers, parts, strict=True)
    }
