"""Host side: events of ColliderML, in Parquet; the only file that imports pyarrow.

A configuration is a directory such as `ttbar_pu200_tracker_hits` of `train-00000-of-01000.parquet`
and so on, and beside it `ttbar_pu200_particles`. A row is an event; its columns are lists. Lengths
are in mm, momenta in GeV, charges in units of the positron's.
The format: https://huggingface.co/datasets/CERN/ColliderML-Release-1 (arXiv:2512.15230).
"""

import importlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.events.event import NOISE, Event, Particles, validate_event
from hypertrack_jax.files import replace_file

_POSITION, _MODULE = ("x", "y", "z"), ("volume_id", "layer_id", "surface_id")
_VERTEX, _MOMENTUM = ("vx", "vy", "vz"), ("px", "py", "pz")
_HITS = {
    **dict.fromkeys(_POSITION, np.float32),
    **dict.fromkeys((*_MODULE, "particle_id"), np.int64),
}
_PARTICLES = {
    **dict.fromkeys((*_VERTEX, *_MOMENTUM), np.float32),
    **{"particle_id": np.int64, "charge": np.float64},
}
_PRIMARY = {"primary": np.bool_, "parent_id": np.int64}
"""Either column says which particles are primary."""
_BATCH = 16
"""Events that are in memory at a time."""


class ColliderEvent(NamedTuple):
    """An event, and what only ColliderML knows of it."""

    event: Event
    is_primary: Bool[np.ndarray, " particle"]
    """False for particles that another particle made; all True where the file does not say."""


class _Place(NamedTuple):
    """Where an event's row is."""

    path: Path
    group: int
    row: int


def list_colliderml_events(source: str | Path) -> list[int]:
    """Numbers of the events in the `tracker_hits` below a directory, in ascending order.

    Raises:
      FileNotFoundError: there is no such directory, or no such table in it.
      MissingPackageError: pyarrow is not installed.
      UserError: a file is damaged, or has an event twice.
    """
    return sorted(_places(Path(source), "tracker_hits"))


def read_colliderml_events(
    source: str | Path, event_ids: Collection[int] | None = None
) -> Iterator[ColliderEvent]:
    """Reads events one after the other; only a few of them are in memory.

    The `hit_id` of a hit is its place in the row. A hit whose `particle_id` is no particle of the
    event is noise. Only charged particles and those with hits are kept. Where a particle has the
    id 0, all ids are raised by 1, since 0 stands for noise. ColliderML has no hit weights: all
    particle hits get the same.

    Args:
      source: directory of one configuration's tables, at any depth.
      event_ids: numbers of the events to read, such as `range(90_000, 90_100)`; those that are
        not there are left out. None for all.

    Yields:
      The events in the order of the files.

    Raises:
      FileNotFoundError: there is no such directory, or no such table in it.
      MissingPackageError: pyarrow is not installed.
      UserError: a file is damaged, lacks a column, or has an event twice; an event has no
        particles, or columns that do not fit together; none of `event_ids` is there.
    """
    source = Path(source)
    hits, particles = _places(source, "tracker_hits"), _places(source, "particles")
    wanted = {
        number: place for number, place in hits.items() if event_ids is None or number in event_ids
    }
    missing = sorted(wanted.keys() - particles.keys())
    if missing:
        raise UserError(
            f"{source}: event {missing[0]} has hits but no particles ({len(missing)} of "
            f"{len(wanted)} events); fetch the table of particles, too."
        )
    if not wanted:
        raise UserError(
            f"{source}: none of these events is in it; it has {len(hits)}, from "
            f"{min(hits, default=None)} to {max(hits, default=None)}."
        )
    of_hits = _rows(wanted, _HITS)
    of_particles = _rows({number: particles[number] for number in wanted}, _PARTICLES)
    # Both tables come in the order of their files, which may differ.
    waiting: dict[int, dict[str, np.ndarray]] = {}
    for number, columns in of_hits:
        while number not in waiting:
            other, found = next(of_particles)
            waiting[other] = found
        yield _event(number, columns, waiting.pop(number), str(wanted[number].path))


def write_colliderml_tracks(
    path: str | Path, tracks: Iterable[tuple[Event, Int[np.ndarray, " hit"]]]
) -> Path:
    """Writes tracks as a submission of ColliderML's tracking task: event_id, hit_id, track_id.

    Hits without a track are left out: the format has no id for them, and one id for all of them
    would make them a track.

    Args:
      path: the Parquet file to write.
      tracks: events, each with the track of every hit, from 0; negative for none.

    Returns:
      `path`.

    Raises:
      MissingPackageError: pyarrow is not installed.
      UserError: the labels are not one whole number per hit.
      OSError: the file cannot be written.
    """
    arrow, path = _pyarrow(), Path(path)
    names = ("event_id", "hit_id", "track_id")
    schema = arrow.schema([(name, arrow.int64()) for name in names])
    with replace_file(path) as file, arrow.parquet.ParquetWriter(file, schema) as writer:
        for event, hit_label in tracks:
            label = np.asarray(hit_label)
            if label.dtype.kind not in "iu" or label.shape != event.hit_id.shape:
                raise UserError(
                    f"{path}: the labels of event {event.event_id} are {label.dtype} of shape "
                    f"{label.shape}; expected one whole number for each of its hits."
                )
            is_in_track = label >= 0
            hit_id, track = event.hit_id[is_in_track], label[is_in_track].astype(np.int64)
            columns = [np.full(len(hit_id), event.event_id, np.int64), hit_id, track]
            writer.write_table(arrow.table(columns, schema=schema))
    return path


def read_colliderml_tracks(path: str | Path) -> dict[str, Int64[np.ndarray, " row"]]:
    """The columns event_id, hit_id and track_id of a submission to ColliderML's tracking task.

    Raises:
      MissingPackageError: pyarrow is not installed.
      UserError: the file is damaged, or a column is missing or is not of whole numbers.
    """
    path = Path(path)
    with _opened(path) as file:
        names = ["event_id", "hit_id", "track_id"]
        if not {*names} <= {*file.schema_arrow.names}:
            raise UserError(
                f"{path}: has the columns {', '.join(file.schema_arrow.names)}; expected "
                f"{', '.join(names)}, a row for each hit in a track."
            )
        table = file.read(names)
        return {name: _numbers(table[name].combine_chunks(), np.int64) for name in names}


def _places(source: Path, table: str) -> dict[int, _Place]:
    """Where each event of a table is; only the column event_id is read."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory of ColliderML's tables.")
    paths = sorted(
        path
        for path in source.rglob("*.parquet")
        if table in path.name or path.parent.name.endswith(f"_{table}") or path.parent.name == table
    )
    if not paths:
        raise FileNotFoundError(
            f"{source}: no Parquet files of {table} in it; name a directory that holds "
            f"PROCESS_PILEUP_{table}, such as ttbar_pu0_{table}."
        )
    found: dict[int, _Place] = {}
    for path in paths:
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["event_id"])
                _require_columns(path, column.schema, ["event_id"])
                numbers = _numbers(column["event_id"].combine_chunks(), np.int64)
                for row, number in enumerate(numbers.tolist()):
                    if number in found:
                        raise UserError(
                            f"{path}: event {number} is in {found[number].path}, too; name a "
                            "directory that holds the tables of one configuration alone."
                        )
                    found[number] = _Place(path, group, row)
    return found


def _rows(
    places: dict[int, _Place], kinds: dict[str, type]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The columns of each event, in the order of the files."""
    groups: dict[tuple[Path, int], dict[int, int]] = {}
    for number, place in sorted(places.items(), key=lambda item: item[1]):
        groups.setdefault((place.path, place.group), {})[place.row] = number
    for (path, group), wanted in groups.items():
        with _opened(path) as file:
            columns = _columns(path, file.schema_arrow, kinds)
            batches = file.iter_batches(_BATCH, row_groups=[group], columns=[*columns])
            start, last = 0, max(wanted)
            for batch in batches:
                for row in range(batch.num_rows):
                    if start + row in wanted:
                        yield wanted[start + row], _lists(batch, row, columns)
                start += batch.num_rows
                if start > last:
                    break
            else:
                raise ValueError(f"{start} rows where there are {last + 1}")


def _columns(path: Path, schema: Any, kinds: dict[str, type]) -> dict[str, type]:
    """The columns to read and their types, under the names that this file has."""
    columns = dict(kinds)
    if kinds is _HITS and "particle_id" not in schema.names:
        # Some releases call the column so, since several particles may share a hit.
        columns["majority_particle_id"] = columns.pop("particle_id")
    _require_columns(path, schema, columns)
    if kinds is _PARTICLES:
        columns |= {name: kind for name, kind in _PRIMARY.items() if name in schema.names}
    return columns


def _require_columns(path: Path, schema: Any, names: Iterable[str]) -> None:
    for name in names:
        if name not in schema.names:
            raise UserError(
                f"{path}: no column {name!r}; expected a table of ColliderML, one row per event."
            )


def _lists(batch: Any, row: int, columns: dict[str, type]) -> dict[str, np.ndarray]:
    """One event's columns, all of one length."""
    found = {}
    for name, kind in columns.items():
        values = batch.column(batch.schema.get_field_index(name))[row].values
        found[name.removeprefix("majority_")] = _numbers(values, kind)
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of one event have different lengths, {lengths}")
    return found


def _numbers(array: Any, kind: type) -> np.ndarray:
    """An arrow array of numbers as a NumPy array of type `kind`; uint64 as int64 keeps its bits."""
    if array.null_count:
        raise ValueError("a value is missing")
    values = array.to_numpy(zero_copy_only=False)
    allowed = "iub" if np.dtype(kind).kind in "iub" else "fiu"
    if values.dtype.kind not in allowed and len(values):
        raise ValueError(f"a column is of type {array.type}")
    return values.astype(kind)


def _event(
    number: int, hits: dict[str, np.ndarray], table: dict[str, np.ndarray], where: str
) -> ColliderEvent:
    position = _stacked(hits, _POSITION)
    name, charge = table["particle_id"], table["charge"]
    order = np.argsort(name, kind="stable")
    if (np.diff(name[order]) == 0).any():
        raise UserError(f"{where}: event {number} has a particle twice; fetch its table anew.")
    if not (np.isfinite(charge) & (charge == np.round(charge)) & (abs(charge) < 2**31)).all():
        raise UserError(f"{where}: event {number} has a charge that is no whole number.")
    at = np.minimum(np.searchsorted(name, hits["particle_id"], sorter=order), len(name) - 1)
    of_hit = np.full(len(position), NOISE)
    if len(name):
        of_hit = np.where(name[order[at]] == hits["particle_id"], order[at], NOISE)
    num_hits = np.bincount(of_hit[of_hit != NOISE], minlength=len(name))
    is_kept = (charge != 0) | (num_hits > 0)
    place = np.append(np.cumsum(is_kept) - 1, NOISE)
    is_particle = of_hit != NOISE
    event = Event(
        event_id=number,
        position=position,
        hit_id=np.arange(len(position)),
        hit_particle=place[of_hit].astype(np.int32),
        hit_weight=np.where(is_particle, 1 / max(1, np.count_nonzero(is_particle)), 0.0),
        module=np.stack([hits[part] for part in _MODULE], axis=1),
        particles=Particles(
            particle_id=name[is_kept] + int((name == 0).any()),
            vertex=_stacked(table, _VERTEX)[is_kept],
            momentum=_stacked(table, _MOMENTUM)[is_kept],
            charge=charge[is_kept].astype(np.int32),
            num_hits=num_hits[is_kept].astype(np.int32),
        ),
        has_truth=True,
    )
    if not all(
        np.isfinite(part).all() for part in (event.particles.vertex, event.particles.momentum)
    ):
        raise UserError(f"{where}: event {number} has a particle that is not finite.")
    is_primary = np.ones(len(name), bool)
    if "primary" in table:
        is_primary = table["primary"]
    elif "parent_id" in table:
        is_primary = table["parent_id"] == -1
    return ColliderEvent(validate_event(event, f"{where}, event {number}"), is_primary[is_kept])


def _stacked(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> Float32[np.ndarray, "n 3"]:
    return np.stack([columns[name] for name in names], axis=1)


class _opened:
    """A Parquet file; what pyarrow raises for damaged bytes becomes a `UserError`."""

    def __init__(self, path: Path):
        self._path, self._arrow = path, _pyarrow()

    def __enter__(self) -> Any:
        try:
            self._file = self._arrow.parquet.ParquetFile(self._path)
        except Exception as error:
            self.__exit__(type(error), error, None)
            raise
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UserError) or error is None:
            return
        damage = (
            *(self._arrow.ArrowException, OSError, ValueError, LookupError, TypeError),
            *(ArithmeticError, AttributeError, MemoryError, NotImplementedError),
        )
        if isinstance(error, damage):
            reason = " ".join(str(error).split())[:100].rstrip(".") or type(error).__name__
            raise UserError(
                f"{self._path}: damaged or not a table of ColliderML ({reason}); fetch it again."
            ) from error


def _pyarrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingPackageError(
            "ColliderML's files need pyarrow; install it with "
            "pip install 'hypertrack-jax[colliderml]'."
        ) from error
