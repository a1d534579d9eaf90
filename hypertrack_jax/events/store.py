"""Host side: one .npz file per event, ranges of events, and the order of events in training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.cells import Cells
from hypertrack_jax.events.event import Event, Particles, validate_event
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz
from hypertrack_jax.streams import stream

_PARTICLE_PREFIX = "particles/"
_PARTICLE_ARRAYS = {
    "particle_id": ArrayType(np.int64, ("particle",)),
    "vertex": ArrayType(np.float32, ("particle", 3)),
    "momentum": ArrayType(np.float32, ("particle", 3)),
    "charge": ArrayType(np.int32, ("particle",)),
    "num_hits": ArrayType(np.int32, ("particle",)),
}
_CELL_PREFIX = "cells/"
_CELL_ARRAYS = {
    "extent": ArrayType(np.int32, ("hit", 2)),
    "num_cells": ArrayType(np.int32, ("hit",)),
    "charge": ArrayType(np.float32, ("hit",)),
    "slant": ArrayType(np.float32, ("hit",)),
    "is_cut": ArrayType(np.bool_, ("hit", 2)),
    "frame": ArrayType(np.float32, ("hit", 3, 3)),
}
FORMAT = NpzFormat(
    kind="an event file",
    remedy="remove it and make it anew",
    arrays={
        "event_id": ArrayType(np.int64, ()),
        "position": ArrayType(np.float32, ("hit", 3)),
        "hit_id": ArrayType(np.int64, ("hit",)),
        "hit_particle": ArrayType(np.int32, ("hit",)),
        "hit_weight": ArrayType(np.float64, ("hit",)),
        "module": ArrayType(np.int64, ("hit", 3)),
        "has_truth": ArrayType(np.bool_, ()),
        **{_PARTICLE_PREFIX + name: kind for name, kind in _PARTICLE_ARRAYS.items()},
    },
    version=1,
    optional={_CELL_PREFIX + name: kind for name, kind in _CELL_ARRAYS.items()},
)
"""What an event file holds; the version rises when older files can no longer be read."""


def event_path(directory: str | Path, event_id: int) -> Path:
    """Path of an event's file, such as `event000001000.npz`."""
    return Path(directory) / f"event{event_id:09d}.npz"


def save_event(directory: str | Path, event: Event) -> Path:
    """Writes an event, whole or not at all.

    The file is not compressed: training reads one per step, and inflating costs more than reading.

    Args:
      directory: where to write; made if it is not there.
      event: the event; checked here, so that `load_event` need not check it.

    Returns:
      Path of the file.

    Raises:
      UserError: the event is not valid, see `validate_event`.
      OSError: the file cannot be written.
    """
    path = event_path(directory, event.event_id)
    validate_event(event, str(path))
    arrays = event._asdict()
    particles, cells = arrays.pop("particles"), arrays.pop("cells")
    arrays |= {_PARTICLE_PREFIX + name: array for name, array in particles._asdict().items()}
    if cells is not None:
        arrays |= {_CELL_PREFIX + name: array for name, array in cells._asdict().items()}
    return write_npz(path, FORMAT, arrays)


def load_event(directory: str | Path, event_id: int) -> Event:
    """Reads an event that `save_event` wrote; the file's checksums vouch for its content.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is damaged, is no event file, or has another format version.
    """
    require_events(directory, [event_id])
    return read_event_file(event_path(directory, event_id))


def event_size(directory: str | Path, event_id: int) -> int:
    """Number of hits of an event, without reading all of it.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is damaged, is no event file, or has another format version.
    """
    require_events(directory, [event_id])
    hits = "hit_particle"
    return len(read_npz(event_path(directory, event_id), FORMAT, [hits])[hits])


def read_event_file(path: Path) -> Event:
    """Reads an event from a file of any name.

    Raises:
      OSError: the file cannot be opened.
      UserError: the file is damaged, is no event file, or has another format version.
    """
    arrays = read_npz(path, FORMAT)
    particles = Particles(*(arrays.pop(_PARTICLE_PREFIX + name) for name in Particles._fields))
    event_id, has_truth = int(arrays.pop("event_id")), bool(arrays.pop("has_truth"))
    cells = None
    if _CELL_PREFIX + "extent" in arrays:
        cells = Cells(*(arrays.pop(_CELL_PREFIX + name) for name in Cells._fields))
    return Event(event_id=event_id, particles=particles, has_truth=has_truth, cells=cells, **arrays)


def event_ids(starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Event numbers of the ranges starts[0]..ends[0], starts[1]..ends[1], ..., ends included.

    Raises:
      UserError: no range, lists of different lengths, a negative number, a range that ends before
        it starts, or ranges that share an event.
    """
    if len(starts) != len(ends) or not starts:
        raise UserError(
            f"--event_start has {len(starts)} values and --event_end {len(ends)}; "
            "give both as many, and at least one."
        )
    for start, end in zip(starts, ends, strict=True):
        if not 0 <= start <= end:
            raise UserError(
                f"--event_start={start} with --event_end={end} is not a range of events; "
                "expected 0 <= start <= end."
            )
    ids = [i for start, end in zip(starts, ends, strict=True) for i in range(start, end + 1)]
    if len(set(ids)) < len(ids):
        raise UserError(
            f"--event_start={list(starts)} with --event_end={list(ends)}: the ranges overlap; "
            "name every event once."
        )
    return ids


def require_events(directory: str | Path, ids: Sequence[int]) -> None:
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

    Each epoch has its own permutation of the events; consecutive steps walk through the epochs, and
    a batch may begin in one epoch and end in the next.

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
        order = stream("order of an epoch", seed, int(number)).permutation(len(ids))
        chosen[epoch == number] = order[place[epoch == number]]
    return [ids[index] for index in chosen.tolist()]
