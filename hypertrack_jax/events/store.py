"""Host side: one .npz file per event, ranges of events, and the order in which they are read."""

import contextlib
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hypertrack_jax.events.event import Event, Particles, validate_event

FORMAT_VERSION = 1
"""Raised whenever a file of the former layout can no longer be read."""

_PARTICLE_PREFIX = "particles/"

# NumPy reads headers with the module ast, of which Python 3.11 counts the depth for all threads
# together: where a garbage collection lets another one in, it raises a SystemError.
_READING = threading.Lock()


def event_path(directory: Path, event_id: int) -> Path:
    """Path of an event's file, such as `event000001000.npz`."""
    return directory / f"event{event_id:09d}.npz"


def save_event(directory: Path, event: Event) -> Path:
    """Writes an event, whole or not at all.

    The file is not compressed: training reads one per step, and inflating costs more than reading.

    Args:
      directory: where to write; made if it is not there.
      event: the event; checked first, so that `load_event` need not.

    Returns:
      Path of the file.

    Raises:
      ValueError: the event is not valid, see `validate_event`.
      OSError: the file cannot be written.
    """
    path = event_path(directory, event.event_id)
    validate_event(event, str(path))
    arrays = event._asdict()
    particles: Particles = arrays.pop("particles")
    arrays |= {_PARTICLE_PREFIX + name: array for name, array in particles._asdict().items()}
    with replace_file(path) as file:
        np.savez(file, format_version=np.int32(FORMAT_VERSION), **arrays)
    return path


def load_event(directory: Path, event_id: int) -> Event:
    """Reads an event that `save_event` wrote; the file's checksums vouch for its content.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, is no event file, or has another format version.
    """
    require_events(directory, [event_id])
    path = event_path(directory, event_id)
    try:
        # np.load leaves a file that it opened itself open when the file is damaged.
        with (
            _READING,
            open(path, "rb") as stream,
            np.load(stream, allow_pickle=False) as file,
        ):
            version = int(file["format_version"])
            if version == FORMAT_VERSION:
                return _unpack(file)
    # What np.load raises for a zip cut short, a flipped bit, an empty file, another kind of file.
    except (zipfile.BadZipFile, EOFError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(
            f"{path}: damaged or not an event file ({error}); remove it and make it anew."
        ) from error
    raise ValueError(
        f"{path}: format version {version}, but this program reads version {FORMAT_VERSION}; "
        "make the events anew."
    )


def parse_int_list(name: str, values: Sequence[str]) -> list[int]:
    """Whole numbers from the values of the list flag `--name`.

    Raises:
      ValueError: a value is not a whole number.
    """
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise ValueError(
            f"--{name}={','.join(values)}: not a list of whole numbers; write it like "
            f"--{name}=1000,7700."
        ) from error


def event_ids(starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Event numbers of the ranges starts[0]..ends[0], starts[1]..ends[1], ..., ends included.

    Raises:
      ValueError: no range, lists of different lengths, a negative number, a range that ends before
        it starts, or ranges that share an event.
    """
    if len(starts) != len(ends) or not starts:
        raise ValueError(
            f"--event_start has {len(starts)} values and --event_end {len(ends)}; "
            "give both as many, and at least one."
        )
    for start, end in zip(starts, ends, strict=True):
        if not 0 <= start <= end:
            raise ValueError(
                f"--event_start={start} with --event_end={end} is not a range of events; "
                "expected 0 <= start <= end."
            )
    ids = [i for start, end in zip(starts, ends, strict=True) for i in range(start, end + 1)]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"--event_start={list(starts)} with --event_end={list(ends)}: the ranges overlap; "
            "name every event once."
        )
    return ids


def require_events(directory: Path, ids: Sequence[int]) -> None:
    """Checks that the files of all events are there.

    Raises:
      FileNotFoundError: at least one is missing.
    """
    missing = [event_id for event_id in ids if not event_path(directory, event_id).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{event_path(directory, missing[0])}: no such event ({len(missing)} of {len(ids)} "
            "events are missing); make them with simulate.py or process_data.py, or narrow "
            "--event_start and --event_end."
        )


def step_event_ids(ids: Sequence[int], seed: int, step: int, batch_size: int) -> list[int]:
    """Events of a training step, a pure function of (seed, step): resuming needs only the step.

    Each epoch is a permutation of its own; consecutive steps walk through the epochs, and a batch
    may begin in one epoch and end in the next.

    Args:
      ids: the events to train on.
      seed: seed of the permutations, not negative.
      step: number of the step, from 0.
      batch_size: events per step.

    Returns:
      `batch_size` of the ids.
    """
    epoch, place = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), len(ids))
    chosen = np.empty(batch_size, np.int64)
    for number in np.unique(epoch):
        order = np.random.default_rng([seed, number]).permutation(len(ids))
        chosen[epoch == number] = order[place[epoch == number]]
    return [ids[index] for index in chosen.tolist()]


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once complete and else leaves nothing.

    Raises:
      OSError: no space, no permission, or no such place.
    """
    # The process id keeps two writers of one path apart.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                yield file
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or choose a "
            "directory that you may write to."
        ) from error


def _unpack(file: np.lib.npyio.NpzFile) -> Event:
    particles = {name: file[_PARTICLE_PREFIX + name] for name in Particles._fields}
    hits = {
        name: file[name] for name in ("position", "hit_id", "hit_particle", "hit_weight", "module")
    }
    return Event(
        event_id=int(file["event_id"]),
        particles=Particles(**particles),
        has_truth=bool(file["has_truth"]),
        **hits,
    )
