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
from jaxtyping import Float32, Int

from hypertrack_jax.errors import UserError, warn_user
from hypertrack_jax.events.archives import Files, base_name, opened
from hypertrack_jax.events.cells import FiredCells, cell_columns, read_cells
from hypertrack_jax.events.csv_table import read_table, require_finite, to_csv
from hypertrack_jax.events.event import (
    NOISE,
    Event,
    choose_hits,
    no_particles,
    validate_event,
)
from hypertrack_jax.events.modules import Modules, find_detector, module_clusters
from hypertrack_jax.events.trackml_truth import counted_particles, unit_weights, with_truth
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
_FILE_NAME = re.compile(r"event(\d{1,18})-(hits|cells|truth|particles)\.csv(\.gz)?", re.IGNORECASE)


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
    sum to 1 are taken as they are. Other weights, such as those of a thinned file, are scaled to
    sum to 1, and a warning tells their sum. A warning also counts particles of charge 0.

    Args:
      source: a directory or a zip, with the files at any depth.
      event_id: number of the event.
      lenient: leave out hits whose position is not finite and a particle whose id is 0, and give
        the particle hits equal weights where the truth has none; a warning reports each.
      detector: the file that lists the modules; None looks for `detectors.csv` or `.csv.gz` in the
        source, else beside a zip.

    Returns:
      The event. `has_truth` is False without a file of truth. `cells` is None without a file of
      cells or a file that lists the modules.

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
    """Writes an event as TrackML files, which `read_event` reads back bit for bit.

    An `Event` holds clusters but not their cells; cells are written if `fired` gives them. Without
    truth only cells and hits are written. The hits come last, so that an interrupted run leaves no
    event that `list_event_ids` would name and `read_event` could not read.

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
    # Hits are checked before the truth, so that a message about them names their own file.
    validate_event(choose_hits(event, is_kept), where["hits"])
    if "truth" in names:
        event = with_truth(event, where, names, files, lenient, notes)
    if modules is not None:
        fired = read_cells(where["cells"], files[names["cells"]](), event.hit_id)
        cells = module_clusters(modules, fired, event.module, event.hit_id, where["hits"])
        event = event._replace(cells=cells)
    event = choose_hits(event, is_kept)
    if not event.has_truth:
        return event
    weight = unit_weights(event.hit_weight, where["truth"], notes)
    return event._replace(hit_weight=weight, particles=counted_particles(event))


def _event_files(source: Path, event_id: int, files: Files) -> dict[str, str]:
    """Names of an event's files by kind: hits, and cells, truth and particles if they exist."""
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
