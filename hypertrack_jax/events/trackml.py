"""Host side: events in the files of the TrackML challenge.

An event is `event000001000-hits.csv`, `-cells.csv`, `-truth.csv` and `-particles.csv`, each plain
or gzipped, at any depth of a directory or zip; `detectors.csv` beside them lists the modules.
Columns are found by name, so more columns than we need do no harm.
The format: https://www.kaggle.com/c/trackml-particle-identification/data.
"""

import gzip
import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from hypertrack_jax.errors import UserError, warn_user
from hypertrack_jax.events.archives import Files, base_name, opened
from hypertrack_jax.events.cells import (
    Cells,
    FiredCells,
    cell_columns,
    cluster_cells,
    read_cells,
)
from hypertrack_jax.events.csv_table import read_table, require_finite, to_csv
from hypertrack_jax.events.event import (
    NOISE,
    Event,
    Particles,
    choose_hits,
    no_particles,
    validate_event,
)
from hypertrack_jax.events.modules import (
    Modules,
    find_detector,
    find_modules,
    module_channels,
    module_frames,
)
from hypertrack_jax.files import replace_file

# Integers never pass through a float: particle ids use up to 64 bits.
_HIT_COLUMNS = {
    "hit_id": np.int64,
    "x": np.float32,
    "y": np.float32,
    "z": np.float32,
    "volume_id": np.int64,
    "layer_id": np.int64,
    "module_id": np.int64,
}
_TRUTH_COLUMNS = {"hit_id": np.int64, "particle_id": np.uint64, "weight": np.float64}
_PARTICLE_COLUMNS = {
    "particle_id": np.uint64,
    "vx": np.float32,
    "vy": np.float32,
    "vz": np.float32,
    "px": np.float32,
    "py": np.float32,
    "pz": np.float32,
    "q": np.float64,
}
_FILE_NAME = re.compile(r"event(\d{1,18})-(hits|cells|truth|particles)\.csv(\.gz)?", re.IGNORECASE)
# The files print six digits, so that the weights of a whole event miss 1 by about 1e-6.
_WEIGHT_SUM_TOLERANCE = 1e-5


def list_event_ids(source: str | Path) -> list[int]:
    """Numbers of the events whose hits are in a directory or zip, in ascending order.

    Raises:
      FileNotFoundError: there is no such directory or file.
      UserError: the file is not a zip.
    """
    with opened(Path(source)) as files:
        names = (_FILE_NAME.fullmatch(base_name(name)) for name in files)
        return sorted({int(name[1]) for name in names if name and name[2].lower() == "hits"})


def lacks_detector(source: str | Path) -> bool:
    """Whether there are cells in a directory or zip, but no file that lists the modules.

    Raises:
      FileNotFoundError: there is no such directory or file.
      UserError: the file is not a zip, or there are two files that list the modules.
    """
    with opened(Path(source)) as files:
        names = (_FILE_NAME.fullmatch(base_name(name)) for name in files)
        has_cells = any(name and name[2].lower() == "cells" for name in names)
        return has_cells and find_detector(Path(source), files, None) is None


def read_event(
    source: str | Path,
    event_id: int,
    *,
    lenient: bool = False,
    detector: str | Path | None = None,
) -> Event:
    """Reads one event.

    Hits per particle are counted from the truth, and particles without hits are kept. Weights that
    sum to 1 are taken as they are. Others, as of a thinned file, are scaled to sum to 1, and a
    warning tells their sum. A warning also counts particles of charge 0.

    Args:
      source: a directory or a zip, with the files at any depth.
      event_id: number of the event.
      lenient: leave out hits whose position is not finite and a particle that is named 0, and give
        the particle hits equal weights where there is no such column; a warning counts each.
      detector: the file that lists the modules; None looks for `detectors.csv` or `.csv.gz` in the
        source, and beside a zip.

    Returns:
      The event. `has_truth` is False where there is no truth file, `cells` is None where there is
      no file of cells, or none that lists the modules.

    Raises:
      FileNotFoundError: there are no hits, truth without particles, or no such `detector`.
      UserError: a file is damaged, has a missing column, a row of another length, a number that
        cannot be read or is not finite, an id that occurs twice, or belongs to another event; a
        hit with cells is on a module that is not listed.
    """
    source, notes = Path(source), []
    with opened(source) as files:
        names = _event_files(source, event_id, files)
        modules = None
        if "cells" in names:
            modules = find_detector(source, files, None if detector is None else Path(detector))
        event = _read_event(source, event_id, files, names, modules, lenient, notes)
    for note in notes:
        warn_user(note)
    return event


def write_event_csv(
    directory: str | Path,
    event: Event,
    true_position: Float32[np.ndarray, "hit 3"] | None = None,
    true_momentum: Float32[np.ndarray, "hit 3"] | None = None,
    fired: FiredCells | None = None,
    compress: bool = False,
) -> None:
    """Writes an event as TrackML files, which `read_event` takes back bit for bit.

    An event has clusters and not their cells, which are written where `fired` gives them. Without
    truth only these and the hits are written. The hits come last, so that an interrupted run leaves
    no event that `list_event_ids` would name and `read_event` could not read.

    Args:
      directory: where to write; made if it is not there.
      event: the event.
      true_position: where the particle crossed the module, in mm; columns tx, ty, tz of the truth.
      true_momentum: its momentum there, in GeV; columns tpx, tpy, tpz.
      fired: the cells of the hits; `modules.write_detector_csv` writes the modules they are on.
      compress: write .csv.gz.

    Raises:
      OSError: a file cannot be written.
    """
    tables = {}
    if event.has_truth:
        names = event.particles.particle_id.view(np.uint64)
        tables["truth"] = {
            "hit_id": event.hit_id,
            "particle_id": np.append(names, np.uint64(0))[event.hit_particle],
            **({} if true_position is None else _split(("tx", "ty", "tz"), true_position)),
            **({} if true_momentum is None else _split(("tpx", "tpy", "tpz"), true_momentum)),
            "weight": event.hit_weight,
        }
        tables["particles"] = {
            "particle_id": names,
            **_split(("vx", "vy", "vz"), event.particles.vertex),
            **_split(("px", "py", "pz"), event.particles.momentum),
            "q": event.particles.charge,
            "nhits": event.particles.num_hits,
        }
    if fired is not None:
        tables["cells"] = cell_columns(fired, event.hit_id)
    tables["hits"] = {
        "hit_id": event.hit_id,
        **_split(("x", "y", "z"), event.position),
        **_split(("volume_id", "layer_id", "module_id"), event.module),
    }
    for kind, columns in tables.items():
        name = f"event{event.event_id:09d}-{kind}.csv"
        # No time of day in the gzip header: equal events give equal files.
        data = gzip.compress(to_csv(columns), mtime=0) if compress else to_csv(columns)
        with replace_file(Path(directory) / (name + ".gz" if compress else name)) as file:
            file.write(data)


def write_submission(path: str | Path, event: Event, hit_label: Int[np.ndarray, " hit"]) -> Path:
    """Writes the tracks of an event as a TrackML submission: event_id, hit_id, track_id.

    Args:
      path: the file to write.
      event: the event.
      hit_label: the track of each hit, from 0; -1 for hits without one, track 0 in the format.

    Returns:
      `path`.

    Raises:
      UserError: the labels are not one whole number per hit, from -1 on.
      OSError: the file cannot be written.
    """
    path, label = Path(path), np.asarray(hit_label)
    if label.dtype.kind not in "iu" or label.shape != event.hit_id.shape:
        raise UserError(
            f"{path}: the labels are {label.dtype} of shape {label.shape}; expected one whole "
            f"number for each of the {len(event.hit_id)} hits."
        )
    if len(label) and label.min() < -1:
        raise UserError(f"{path}: a hit has the label {label.min()}; expected numbers from -1 on.")
    columns = {
        "event_id": np.full(len(label), event.event_id),
        "hit_id": event.hit_id,
        "track_id": label.astype(np.int64) + 1,
    }
    with replace_file(path) as file:
        file.write(to_csv(columns))
    return path


def _read_event(
    source: Path,
    event_id: int,
    files: Files,
    names: dict[str, str],
    modules: Modules | None,
    lenient: bool,
    notes: list[str],
) -> Event:
    where = {kind: f"{source}{os.sep}{name}" for kind, name in names.items()}
    hits = read_table(where["hits"], files[names["hits"]](), _HIT_COLUMNS)
    if not lenient:
        require_finite(hits, where["hits"])
    position = np.stack([hits["x"], hits["y"], hits["z"]], axis=1)
    is_kept = np.asarray(np.isfinite(position).all(axis=1) | (not lenient))
    if not is_kept.all():
        notes.append(
            f"{where['hits']}: {np.count_nonzero(~is_kept)} hits are left out, since their "
            "position is not finite."
        )
    event = Event(
        event_id=event_id,
        position=position,
        hit_id=hits["hit_id"].copy(),
        hit_particle=np.full(len(hits), NOISE, np.int32),
        hit_weight=np.zeros(len(hits)),
        module=np.stack([hits["volume_id"], hits["layer_id"], hits["module_id"]], axis=1),
        particles=no_particles(),
        has_truth=False,
    )
    # First the hits by themselves: what is wrong with them is not for the truth's file to answer.
    validate_event(choose_hits(event, is_kept), where["hits"])
    if "truth" in names:
        event = _add_truth(event, where, names, files, lenient, notes)
    if modules is not None:
        fired = read_cells(where["cells"], files[names["cells"]](), event.hit_id)
        event = event._replace(cells=_clusters(event, fired, modules, where["hits"]))
    event = choose_hits(event, is_kept)
    if not event.has_truth:
        return event
    weight = _unit_weights(event.hit_weight, where["truth"], notes)
    return event._replace(hit_weight=weight, particles=_counted(event))


def _clusters(event: Event, fired: FiredCells, modules: Modules, where: str) -> Cells:
    """The clusters of the hits; frames are 0 for hits without cells on modules not listed."""
    module = find_modules(modules, event.module)
    is_unknown = module[fired.hit] < 0
    if is_unknown.any():
        hit = fired.hit[np.argmax(is_unknown)]
        name = "-".join(map(str, event.module[hit].tolist()))
        raise UserError(
            f"{where}: hit_id {event.hit_id[hit]} is on module {name}, which detectors.csv does "
            "not list; take the detectors.csv of these events."
        )
    frames = np.append(module_frames(modules), np.zeros((1, 3, 3), np.float32), axis=0)
    channels = np.append(module_channels(modules), [[0, 0]], axis=0)
    return cluster_cells(fired, frames[module], channels[module])


def _counted(event: Event) -> Particles:
    """The particles with the number of their hits."""
    is_particle = event.hit_particle != NOISE
    num_particles = len(event.particles.particle_id)
    num_hits = np.bincount(event.hit_particle[is_particle], minlength=num_particles)
    return event.particles._replace(num_hits=num_hits.astype(np.int32))


def _add_truth(
    event: Event,
    where: dict[str, str],
    names: dict[str, str],
    files: Files,
    lenient: bool,
    notes: list[str],
) -> Event:
    """The event with its particles, and its hits' particles and weights."""
    if "particles" not in names:
        raise FileNotFoundError(
            f"{where['truth']}: there is truth, but no particles file; add "
            f"event{event.event_id:09d}-particles.csv, or remove the truth."
        )
    optional = ("weight",) if lenient else ()
    truth = read_table(where["truth"], files[names["truth"]](), _TRUTH_COLUMNS, optional)
    table = read_table(where["particles"], files[names["particles"]](), _PARTICLE_COLUMNS)
    require_finite(truth, where["truth"])
    require_finite(table, where["particles"])
    _require_unique(truth["hit_id"], "hit_id", where["truth"])
    _require_unique(table["particle_id"], "particle_id", where["particles"])
    is_noise = table["particle_id"] == 0
    if is_noise.any():
        if not lenient:
            raise UserError(
                f"{where['particles']}: particle_id 0 is the name of noise; give the particle "
                "another, here and in the truth."
            )
        table = table[~is_noise]
        notes.append(f"{where['particles']}: 1 particle named 0 is left out; its hits are noise.")
    truth_row = _find(event.hit_id, truth["hit_id"])
    if len(truth) != len(event.hit_id) or (truth_row < 0).any():
        raise UserError(
            f"{where['truth']}: its hit ids are not those of {names['hits']}; it is the truth of "
            "another event, or cut short: fetch both files again."
        )
    truth = truth[truth_row]
    # 0, the name of noise, is no particle's id: it finds -1, which is NOISE.
    hit_particle = _find(truth["particle_id"], table["particle_id"])
    unknown = (hit_particle == NOISE) & (truth["particle_id"] != 0)
    if unknown.any():
        raise UserError(
            f"{where['truth']}: particle_id {truth['particle_id'][unknown][0]} is not in "
            f"{names['particles']}; fetch both files again."
        )
    if "weight" in (truth.dtype.names or ()):
        weight = truth["weight"].copy()
    else:
        weight = np.where(hit_particle == NOISE, 0.0, 1 / max(1, (hit_particle != NOISE).sum()))
        notes.append(
            f"{where['truth']}: no column weight; {np.count_nonzero(weight)} particle hits are "
            "given equal weights."
        )
    return event._replace(
        hit_particle=hit_particle.astype(np.int32),
        hit_weight=weight,
        particles=_particles(table, where["particles"], notes),
        has_truth=True,
    )


def _particles(table: np.ndarray, where: str, notes: list[str]) -> Particles:
    """The particles of a table, whose hits are still to be counted."""
    is_wrong = (table["q"] != np.round(table["q"])) | (np.abs(table["q"]) >= 2**31)
    if is_wrong.any():
        raise UserError(
            f"{where}: q of particle_id {table['particle_id'][is_wrong][0]} is "
            f"{table['q'][is_wrong][0]}; expected a whole number of charges of the positron."
        )
    charge = table["q"].astype(np.int32)
    if (charge == 0).any():
        notes.append(f"{where}: {np.count_nonzero(charge == 0)} particles have the charge 0.")
    return Particles(
        particle_id=table["particle_id"].view(np.int64).copy(),
        vertex=np.stack([table["vx"], table["vy"], table["vz"]], axis=1),
        momentum=np.stack([table["px"], table["py"], table["pz"]], axis=1),
        charge=charge,
        num_hits=np.zeros(len(table), np.int32),
    )


def _unit_weights(
    weight: Float64[np.ndarray, " hit"], where: str, notes: list[str]
) -> Float64[np.ndarray, " hit"]:
    if (weight < 0).any():
        raise UserError(f"{where}: weight {weight.min()} is negative; weights must be 0 or more.")
    with np.errstate(over="ignore"):
        total = weight.sum()
    if total == 0 or abs(total - 1) < _WEIGHT_SUM_TOLERANCE:
        return weight
    if total == np.inf:
        raise UserError(f"{where}: the sum of the weights is infinite; expected 1.")
    notes.append(f"{where}: the weights sum to {total:g} instead of 1, and are scaled.")
    return weight / total


def _find(wanted: np.ndarray, ids: np.ndarray) -> Int64[np.ndarray, " hit"]:
    """Row of each wanted id among unique ids, or -1."""
    order = np.argsort(ids)
    # Ids beyond the last one find the appended row -1, and that row holds no id at all.
    row = np.append(order, -1)[np.searchsorted(ids, wanted, sorter=order)]
    is_found = row >= 0
    is_found[is_found] = ids[row[is_found]] == wanted[is_found]
    return np.where(is_found, row, -1)


def _require_unique(ids: np.ndarray, column: str, where: str) -> None:
    unique, occurrences = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise UserError(
            f"{where}: {column} {unique[occurrences > 1][0]} occurs more than once; remove the "
            "rows that are too many."
        )


def _event_files(source: Path, event_id: int, files: Files) -> dict[str, str]:
    """Names of an event's files by kind: hits, and truth and particles where they are."""
    found: dict[str, str] = {}
    for name in files:
        match = _FILE_NAME.fullmatch(base_name(name))
        if match and int(match[1]) == event_id:
            kind = match[2].lower()
            if kind in found:
                raise UserError(
                    f"{source}{os.sep}{name}: {found[kind]} holds the {kind} of the same event; "
                    "remove one of the two."
                )
            found[kind] = name
    if "hits" not in found:
        raise FileNotFoundError(
            f"{source}: no event{event_id:09d}-hits.csv or .csv.gz in it; name a directory or zip "
            f"of TrackML files that has this event{_inner_zips(files)}."
        )
    return found


def _inner_zips(files: Files) -> str:
    return ", or unpack the zips in it" * any(name.lower().endswith(".zip") for name in files)


def _split(names: tuple[str, ...], array: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, array.T, strict=True))
