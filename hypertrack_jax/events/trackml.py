"""Host side: events in the files of the TrackML challenge.

An event is `event000001000-hits.csv`, `-truth.csv` and `-particles.csv`, each plain or gzipped, in
a directory or in a zip. Columns are found by name, so more columns than we need do no harm.
The format: https://www.kaggle.com/c/trackml-particle-identification/data.
"""

import gzip
import io
import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from hypertrack_jax.events.event import NOISE, Event, Particles, no_particles, validate_event
from hypertrack_jax.files import replace_file

# Integers never pass through a float: particle ids use up to 60 bits.
_HIT_COLUMNS = {
    "hit_id": np.int64,
    "x": np.float32,
    "y": np.float32,
    "z": np.float32,
    "volume_id": np.int32,
    "layer_id": np.int32,
    "module_id": np.int32,
}
_TRUTH_COLUMNS = {"hit_id": np.int64, "particle_id": np.int64, "weight": np.float64}
_PARTICLE_COLUMNS = {
    "particle_id": np.int64,
    "vx": np.float32,
    "vy": np.float32,
    "vz": np.float32,
    "px": np.float32,
    "py": np.float32,
    "pz": np.float32,
    "q": np.int32,
}
# The files print six digits, so that the weights of a whole event miss 1 by about 1e-6.
_WEIGHT_SUM_TOLERANCE = 1e-5


def list_event_ids(source: Path) -> list[int]:
    """Numbers of the events whose hits are in a directory or zip, in ascending order.

    Raises:
      FileNotFoundError: there is no such directory or file.
      ValueError: the file is not a zip.
    """
    names = (re.fullmatch(r"event(\d{9})-hits\.csv(\.gz)?", _base(n)) for n in _list_files(source))
    return sorted({int(match[1]) for match in names if match})


def read_event(source: Path, event_id: int) -> Event:
    """Reads one event.

    Hits per particle are counted from the truth, and particles without hits are kept. Weights that
    sum to 1 are taken as they are; those of a thinned file are scaled to sum to 1.

    Args:
      source: a directory, or a zip with the files at any depth.
      event_id: number of the event.

    Returns:
      The event; `has_truth` is False where there is no truth file.

    Raises:
      FileNotFoundError: there are no hits, or truth without particles.
      ValueError: a file is damaged, has a missing column, a number that cannot be read or is not
        finite, an id that occurs twice, or belongs to another event.
    """
    files = _event_files(source, event_id)
    hits = _read_table(source, files["hits"], _HIT_COLUMNS)
    event = Event(
        event_id=event_id,
        position=np.stack([hits["x"], hits["y"], hits["z"]], axis=1),
        hit_id=hits["hit_id"].copy(),
        hit_particle=np.full(len(hits), NOISE, np.int32),
        hit_weight=np.zeros(len(hits)),
        module=np.stack([hits["volume_id"], hits["layer_id"], hits["module_id"]], axis=1),
        particles=no_particles(),
        has_truth=False,
    )
    # First the hits by themselves: what is wrong with them is not for the truth's file to answer.
    validate_event(event, _where(source, files["hits"]))
    return _add_truth(event, source, files) if "truth" in files else event


def write_event_csv(
    directory: Path,
    event: Event,
    true_position: Float32[np.ndarray, "hit 3"] | None = None,
    true_momentum: Float32[np.ndarray, "hit 3"] | None = None,
    compress: bool = False,
) -> None:
    """Writes an event as TrackML files, which `read_event` takes back bit for bit.

    Without truth only the hits are written. The hits come last, so that an interrupted run leaves
    no event that `list_event_ids` would name and `read_event` could not read.

    Args:
      directory: where to write; made if it is not there.
      event: the event.
      true_position: where the particle crossed the module, in mm; columns tx, ty, tz of the truth.
      true_momentum: its momentum there, in GeV; columns tpx, tpy, tpz.
      compress: write .csv.gz.

    Raises:
      OSError: a file cannot be written.
    """
    tables = {}
    if event.has_truth:
        particle_id = np.append(event.particles.particle_id, 0)[event.hit_particle]
        tables["truth"] = {
            "hit_id": event.hit_id,
            "particle_id": particle_id,
            **({} if true_position is None else _split(("tx", "ty", "tz"), true_position)),
            **({} if true_momentum is None else _split(("tpx", "tpy", "tpz"), true_momentum)),
            "weight": event.hit_weight,
        }
        tables["particles"] = {
            "particle_id": event.particles.particle_id,
            **_split(("vx", "vy", "vz"), event.particles.vertex),
            **_split(("px", "py", "pz"), event.particles.momentum),
            "q": event.particles.charge,
            "nhits": event.particles.num_hits,
        }
    tables["hits"] = {
        "hit_id": event.hit_id,
        **_split(("x", "y", "z"), event.position),
        **_split(("volume_id", "layer_id", "module_id"), event.module),
    }
    for kind, columns in tables.items():
        name = f"event{event.event_id:09d}-{kind}.csv"
        # No time of day in the gzip header: equal events give equal files.
        data = gzip.compress(_to_csv(columns), mtime=0) if compress else _to_csv(columns)
        with replace_file(directory / (name + ".gz" if compress else name)) as file:
            file.write(data)


def write_submission(path: Path, event: Event, hit_label: Int[np.ndarray, " hit"]) -> Path:
    """Writes the tracks of an event as a TrackML submission: event_id, hit_id, track_id.

    Args:
      path: the file to write.
      event: the event.
      hit_label: the track of each hit, from 0; -1 for hits without one, track 0 in the format.

    Returns:
      `path`.

    Raises:
      OSError: the file cannot be written.
    """
    columns = {
        "event_id": np.full(len(hit_label), event.event_id),
        "hit_id": event.hit_id,
        "track_id": hit_label + 1,
    }
    with replace_file(path) as file:
        file.write(_to_csv(columns))
    return path


def _add_truth(event: Event, source: Path, files: dict[str, str]) -> Event:
    """The event with its particles, and its hits' particles and weights."""
    if "particles" not in files:
        raise FileNotFoundError(
            f"{_where(source, files['truth'])}: there is truth, but no particles file; add "
            f"event{event.event_id:09d}-particles.csv, or remove the truth."
        )
    truth = _read_table(source, files["truth"], _TRUTH_COLUMNS)
    table = _read_table(source, files["particles"], _PARTICLE_COLUMNS)
    _require_unique(truth["hit_id"], "hit_id", source, files["truth"])
    _require_unique(table["particle_id"], "particle_id", source, files["particles"])
    if (table["particle_id"] == 0).any():
        raise ValueError(
            f"{_where(source, files['particles'])}: particle_id 0 is the name of noise; give the "
            "particle another, here and in the truth."
        )
    truth_row = _find(event.hit_id, truth["hit_id"])
    if len(truth) != len(event.hit_id) or (truth_row < 0).any():
        raise ValueError(
            f"{_where(source, files['truth'])}: its hit ids are not those of {files['hits']}; "
            "it is the truth of another event, or cut short: fetch both files again."
        )
    truth = truth[truth_row]
    # 0, the name of noise, is no particle's id: it finds -1, which is NOISE.
    hit_particle = _find(truth["particle_id"], table["particle_id"])
    unknown = (hit_particle == NOISE) & (truth["particle_id"] != 0)
    if unknown.any():
        raise ValueError(
            f"{_where(source, files['truth'])}: particle_id {truth['particle_id'][unknown][0]} is "
            f"not in {files['particles']}; fetch both files again."
        )
    particles = Particles(
        particle_id=table["particle_id"].copy(),
        vertex=np.stack([table["vx"], table["vy"], table["vz"]], axis=1),
        momentum=np.stack([table["px"], table["py"], table["pz"]], axis=1),
        charge=table["q"].copy(),
        num_hits=np.bincount(hit_particle[hit_particle != NOISE], minlength=len(table)).astype(
            np.int32
        ),
    )
    return event._replace(
        hit_particle=hit_particle.astype(np.int32),
        hit_weight=_unit_weights(truth["weight"].copy(), _where(source, files["truth"])),
        particles=particles,
        has_truth=True,
    )


def _unit_weights(weight: Float64[np.ndarray, " hit"], where: str) -> Float64[np.ndarray, " hit"]:
    if (weight < 0).any():
        raise ValueError(f"{where}: weight {weight.min()} is negative; weights must be 0 or more.")
    total = weight.sum()
    if total == 0 or abs(total - 1) < _WEIGHT_SUM_TOLERANCE:
        return weight
    return weight / total


def _find(
    wanted: Int64[np.ndarray, " hit"], ids: Int64[np.ndarray, " row"]
) -> Int64[np.ndarray, " hit"]:
    """Row of each wanted id among unique ids, or -1."""
    order = np.argsort(ids)
    # Ids beyond the last one find the appended row -1, and that row holds no id at all.
    row = np.append(order, -1)[np.searchsorted(ids, wanted, sorter=order)]
    is_found = row >= 0
    is_found[is_found] = ids[row[is_found]] == wanted[is_found]
    return np.where(is_found, row, -1)


def _require_unique(ids: Int64[np.ndarray, " row"], column: str, source: Path, name: str) -> None:
    unique, occurrences = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise ValueError(
            f"{_where(source, name)}: {column} {unique[occurrences > 1][0]} occurs more than once; "
            "remove the rows that are too many."
        )


def _event_files(source: Path, event_id: int) -> dict[str, str]:
    """Names of an event's files by kind: hits, and truth and particles where they are."""
    pattern = re.compile(rf"event{event_id:09d}-(hits|truth|particles)\.csv(\.gz)?")
    files: dict[str, str] = {}
    for name in _list_files(source):
        if match := pattern.fullmatch(_base(name)):
            if match[1] in files:
                raise ValueError(
                    f"{_where(source, name)}: {files[match[1]]} holds the {match[1]} of the same "
                    "event; remove one of the two."
                )
            files[match[1]] = name
    if "hits" not in files:
        raise FileNotFoundError(
            f"{source}: no event{event_id:09d}-hits.csv or .csv.gz in it; name a directory or zip "
            "of TrackML files that has this event."
        )
    return files


def _list_files(source: Path) -> list[str]:
    if source.is_dir():
        return os.listdir(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such directory or zip of TrackML files.")
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{source}: not a directory, and not a complete zip ({error}); fetch it again."
        ) from error


def _read_bytes(source: Path, name: str) -> bytes:
    try:
        if source.is_dir():
            data = (source / name).read_bytes()
        else:
            with zipfile.ZipFile(source) as archive:
                data = archive.read(name)
        return gzip.decompress(data) if name.endswith(".gz") else data
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{_where(source, name)}: cannot be read to its end ({error}); fetch the file again."
        ) from error


def _read_table(source: Path, name: str, columns: dict[str, type]) -> np.ndarray:
    """The named columns of a csv file as a structured array, one entry per row."""
    where = _where(source, name)
    try:
        header, _, body = _read_bytes(source, name).decode("utf-8-sig").partition("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not a text file ({error}); fetch the file again.") from error
    if not header.strip():
        raise ValueError(f"{where}: the file is empty; fetch it again.")
    present = [column.strip() for column in header.split(",")]
    for column in columns:
        if column not in present:
            raise ValueError(
                f"{where}: no column {column!r} among {', '.join(present)}; "
                "expected a file of the TrackML format."
            )
    dtype = np.dtype(list(columns.items()))
    if not body.strip():
        return np.zeros(0, dtype)
    try:
        table = np.loadtxt(
            io.StringIO(body),
            dtype,
            comments=None,
            delimiter=",",
            usecols=[present.index(column) for column in columns],
            ndmin=1,
        )
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{where}: {reason}; correct the row, or fetch the file again.") from error
    _require_finite(table, where)
    return table


def _require_finite(table: np.ndarray, where: str) -> None:
    """Raises `ValueError` for a number that is not finite; the first column names its row."""
    columns = list(table.dtype.fields or ())
    id_column = columns[0]
    for column in columns[1:]:
        bad = np.flatnonzero(~np.isfinite(table[column]))
        if len(bad):
            raise ValueError(
                f"{where}: {column} of {id_column} {table[id_column][bad[0]]} is "
                f"{table[column][bad[0]]}, which is not finite; correct or remove the row."
            )


def _split(names: tuple[str, ...], array: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, array.T, strict=True))


def _to_csv(columns: dict[str, np.ndarray]) -> bytes:
    """Columns as csv; NumPy prints a float with as many digits as tell it from its neighbours."""
    rows = zip(*(column.astype(str).tolist() for column in columns.values()), strict=True)
    return "\n".join([",".join(columns), *map(",".join, rows), ""]).encode()


def _where(source: Path, name: str) -> str:
    return str(source / name)


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]
