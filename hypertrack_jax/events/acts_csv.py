"""Host side: events in the csv files of ACTS and traccc, and tracks as ACTS writes them.

An event is `event000000000-hits.csv`, the simulated hits, and a file of particles. With
`-measurements.csv` and `-measurement-simhit-map.csv` the event's hits are the measurements. Older
releases have measured positions in `-hits.csv` and the simulated hits in `-truth.csv`. The columns
are those of Examples/Io/Csv/src/CsvOutputData.hpp and CsvTrackWriter.cpp of
https://github.com/acts-project/acts, which writes mm and GeV.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int64

from hypertrack_jax.errors import UserError, warn_user
from hypertrack_jax.events.archives import Files, base_name, opened
from hypertrack_jax.events.cells import read_acts_cells
from hypertrack_jax.events.csv_table import read_table, require_finite
from hypertrack_jax.events.event import NOISE, Event, Particles, validate_event
from hypertrack_jax.events.modules import find_detector, module_clusters
from hypertrack_jax.files import replace_file

_BARCODE = {
    "particle_id_pv": 12,
    "particle_id_sv": 12,
    "particle_id_part": 16,
    "particle_id_gen": 8,
    "particle_id_subpart": 16,
}
"""Columns of a particle's barcode in newer files; their bits in the one column of older files."""
_PARTICLES = ("particles_simulated", "particles_initial", "particles")
"""Files of particles; the first that exists is read, since those after it may lack secondaries."""
_KINDS = (
    *("hits", "simhits", "truth", "measurements", "measurement-simhit-map", "cells"),
    *_PARTICLES,
)
_FILE_NAME = re.compile(rf"event(\d{{1,18}})-({'|'.join(_KINDS)})\.csv(\.gz)?", re.IGNORECASE)
_NAME = {"particle_id": np.uint64, **dict.fromkeys(_BARCODE, np.int64)}
_HIT_COLUMNS = {
    **{"geometry_id": np.uint64, "tx": np.float32, "ty": np.float32, "tz": np.float32},
    **_NAME,
}
_PARTICLE_COLUMNS = {
    **{"vx": np.float32, "vy": np.float32, "vz": np.float32},
    **{"px": np.float32, "py": np.float32, "pz": np.float32, "q": np.float64},
    **_NAME,
}
_TRUTH_COLUMNS = {"hit_id": np.int64, **_HIT_COLUMNS}
_MEASURED_COLUMNS = {
    **{"hit_id": np.int64, "geometry_id": np.uint64},
    **{"x": np.float32, "y": np.float32, "z": np.float32},
}
_GLOBAL = ("global_x", "global_y", "global_z")
_MEASUREMENT_COLUMNS = {
    **{"measurement_id": np.int64, "geometry_id": np.uint64},
    **dict.fromkeys(_GLOBAL, np.float32),
}
_LINK_COLUMNS = {"measurement_id": np.int64, "hit_id": np.int64}
_TRACK_HEADER = (
    "track_id,seed_id,particleId,nStates,nMajorityHits,nMeasurements,nOutliers,nHoles,nSharedHits,"
    "chi2,ndf,chi2/ndf,pT,eta,phi,truthMatchProbability,good/duplicate/fake,Measurements_ID"
)


class _Hits(NamedTuple):
    """The hits, from whichever files hold them."""

    hit_id: Int64[np.ndarray, " hit"]
    position: Float32[np.ndarray, "hit 3"]
    geometry: np.ndarray
    source: Int64[np.ndarray, " hit"]
    """Row of the simulated hit that each hit belongs to, or -1."""


def list_acts_events(source: str | Path) -> list[int]:
    """Numbers of the events whose simulated hits are in a directory or zip, in ascending order.

    Raises:
      FileNotFoundError: there is no such directory or file.
      UserError: the file is not a zip.
    """
    with opened(Path(source)) as files:
        names = (_FILE_NAME.fullmatch(base_name(name)) for name in files)
        return sorted({int(n[1]) for n in names if n and n[2].lower() in ("hits", "simhits")})


def read_acts_event(
    source: str | Path, event_id: int, *, detector: str | Path | None = None
) -> Event:
    """Reads one event.

    Without measurements or truth each simulated hit is a hit at its true position, and its `hit_id`
    is its row, from 0. With measurements these are the hits. A measurement of several simulated
    hits belongs to the particle of the first one; a measurement without a simulated hit is noise.
    Measurements of older releases have only local positions. Then the true position of the
    simulated hit is taken, and a warning says so. ACTS has no hit weights: all particle hits get
    the same.

    Args:
      source: a directory or a zip, with the files at any depth.
      event_id: number of the event.
      detector: TrackML's `detectors.csv`, which lists the modules of ACTS's generic detector, too;
        None reads no cells.

    Returns:
      The event, with truth. Its modules are volume, layer and sensitive number of `geometry_id`.
      `cells` is None without a file of cells or without `detector`: ACTS's own files of the
      geometry do not say where channels begin.

    Raises:
      FileNotFoundError: a file is not there.
      UserError: a file is damaged, has a missing column, a number that cannot be read or is not
        finite, or does not fit the other files.
    """
    source = Path(source)
    with opened(source) as files:
        names = _event_files(source, event_id, files)
        where = {kind: f"{source}{os.sep}{name}" for kind, name in names.items()}
        data = {kind: files[name]() for kind, name in names.items()}
        modules = None if detector is None else find_detector(source, files, Path(detector))
    kind, columns = ("truth", _TRUTH_COLUMNS) if "truth" in names else ("hits", _HIT_COLUMNS)
    simulated = _table(where[kind], data[kind], columns, tuple(_NAME))
    table = _table(where["particles"], data["particles"], _PARTICLE_COLUMNS, tuple(_NAME))
    for name, of in ((kind, simulated), ("particles", table)):
        _require_names(of, where[name])
    hits = _simulated_hits(simulated)
    if "measurements" in names:
        hits = _measured_hits(where, data, hits)
    elif kind == "truth":
        measured = _table(where["hits"], data["hits"], _MEASURED_COLUMNS)
        hits = _Hits(
            hit_id=measured["hit_id"].copy(),
            position=_stacked(measured, ("x", "y", "z")),
            geometry=measured["geometry_id"].copy(),
            source=_first_rows(measured["hit_id"], simulated["hit_id"]),
        )
    of_simulated = _particle_of(simulated, table, where[kind], where["particles"])
    hit_particle = np.append(of_simulated, NOISE)[hits.source]
    is_particle = hit_particle != NOISE
    event = Event(
        event_id=event_id,
        position=hits.position,
        hit_id=hits.hit_id,
        hit_particle=hit_particle.astype(np.int32),
        hit_weight=np.where(is_particle, 1 / max(1, np.count_nonzero(is_particle)), 0.0),
        module=_modules(hits.geometry),
        particles=_particles(table, where["particles"], hit_particle[is_particle]),
        has_truth=True,
    )
    if modules is not None and "cells" in names:
        fired = read_acts_cells(where["cells"], data["cells"], event.hit_id)
        cells = module_clusters(modules, fired, event.module, event.hit_id, where["hits"])
        event = event._replace(cells=cells)
    return validate_event(event, where.get("measurements", where["hits"]))


def write_acts_tracks(path: str | Path, event: Event, hit_label: Int[np.ndarray, " hit"]) -> Path:
    """Writes the tracks of an event in the columns of ACTS's CsvTrackWriter.

    Tracks are found and not fitted here, so chi2, pT, eta and phi are `nan`; ndf is two for each
    measurement, minus five track parameters. As in ACTS, a track matches a particle that made at
    least half of its hits. Of the tracks that match a particle, the one with most of its hits is
    `good`, the others are `duplicate`. Tracks without a match are `fake`; without truth, all are
    `unknown`.

    Args:
      path: the file to write.
      event: the event.
      hit_label: the track of each hit, from 0; negative for hits without one.

    Returns:
      `path`.

    Raises:
      UserError: the labels are not one whole number per hit.
      OSError: the file cannot be written.
    """
    path, label = Path(path), np.asarray(hit_label)
    if label.dtype.kind not in "iu" or label.shape != event.hit_id.shape:
        raise UserError(
            f"{path}: the labels are {label.dtype} of shape {label.shape}; expected one whole "
            f"number for each of the {len(event.hit_id)} hits."
        )
    order = np.argsort(label, kind="stable")
    order = order[label[order] >= 0]
    tracks = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    majority = [_majority(event.hit_particle[track]) for track in tracks]
    kinds = _kinds([len(track) for track in tracks], majority, event.has_truth)
    lines = [_TRACK_HEADER]
    for number, (track, (particle, shared), kind) in enumerate(
        zip(tracks, majority, kinds, strict=True)
    ):
        size = len(track)
        name = _barcode(int(event.particles.particle_id[particle])) if shared else _barcode(0)
        ids = "".join(f"{hit}," for hit in event.hit_id[track].tolist())
        lines.append(
            f"{number},{number},{name},{size},{shared},{size},0,0,0,nan,{max(0, 2 * size - 5)},nan,"
            f'nan,nan,nan,{shared / size:.6g},{kind},"[{ids}]"'
        )
    with replace_file(path) as file:
        file.write("\n".join([*lines, ""]).encode())
    return path


def _event_files(source: Path, event_id: int, files: Files) -> dict[str, str]:
    """Names of an event's files by kind: hits and particles, measurements and their links."""
    found: dict[str, str] = {}
    for name in files:
        match = _FILE_NAME.fullmatch(base_name(name))
        if match and int(match[1]) == event_id:
            kind = "hits" if match[2].lower() == "simhits" else match[2].lower()
            if kind in found:
                raise UserError(
                    f"{source}{os.sep}{name}: {found[kind]} holds the {kind} of the same event; "
                    "remove one of the two."
                )
            found[kind] = name
    particles = [found[kind] for kind in _PARTICLES if kind in found]
    names = {kind: name for kind, name in found.items() if kind not in _PARTICLES}
    if particles:
        names["particles"] = particles[0]
    wanted = ["hits", "particles"]
    if "measurements" in names:
        wanted.append("measurement-simhit-map")
    for kind in wanted:
        if kind not in names:
            raise FileNotFoundError(
                f"{source}: no event{event_id:09d}-{kind}.csv or .csv.gz in it; name a directory "
                "or zip of ACTS's csv files that has this event."
            )
    return names


def _table(
    where: str, data: bytes, columns: Mapping[str, type], optional: tuple[str, ...] = ()
) -> np.ndarray:
    table = read_table(where, data, columns, optional, "ACTS's csv format")
    if not len(table):
        raise UserError(f"{where}: has no rows; leave the event out.")
    require_finite(table, where)
    return table


def _require_names(table: np.ndarray, where: str) -> None:
    """Refuses a table that has particle ids in neither format."""
    columns = set(table.dtype.names or ())
    if "particle_id" not in columns and not columns.issuperset(_BARCODE):
        raise UserError(
            f"{where}: has neither the column particle_id nor the five from particle_id_pv to "
            "particle_id_subpart; expected a file of ACTS's csv format."
        )


def _simulated_hits(table: np.ndarray) -> _Hits:
    row = np.arange(len(table))
    return _Hits(row, _stacked(table, ("tx", "ty", "tz")), table["geometry_id"].copy(), row)


def _measured_hits(where: dict[str, str], data: dict[str, bytes], simulated: _Hits) -> _Hits:
    """The measurements, each with its first simulated hit."""
    place, links_at = where["measurements"], where["measurement-simhit-map"]
    table = _table(place, data["measurements"], _MEASUREMENT_COLUMNS, _GLOBAL)
    links = read_table(
        links_at, data["measurement-simhit-map"], _LINK_COLUMNS, (), "ACTS's csv format"
    )
    is_wrong = (links["hit_id"] < 0) | (links["hit_id"] >= len(simulated.hit_id))
    if is_wrong.any():
        raise UserError(
            f"{links_at}: hit_id {links['hit_id'][is_wrong][0]} is no row of the "
            f"{len(simulated.hit_id)} simulated hits; fetch both files again."
        )
    measured = table["measurement_id"].copy()
    row = _first_rows(measured, links["measurement_id"])
    source = np.append(links["hit_id"], -1)[row]
    if set(_GLOBAL) <= set(table.dtype.names or ()):
        position = _stacked(table, _GLOBAL)
    elif (source < 0).any():
        raise UserError(
            f"{place}: measurement {measured[source < 0][0]} has neither a global position nor a "
            "simulated hit; write the files with a newer ACTS."
        )
    else:
        position = simulated.position[source]
        warn_user(f"{place}: no columns global_x, global_y, global_z; true positions are taken.")
    return _Hits(measured, position, table["geometry_id"].copy(), source)


def _first_rows(wanted: np.ndarray, ids: np.ndarray) -> Int64[np.ndarray, " wanted"]:
    """The first row of each wanted id, or -1."""
    if not len(ids):
        return np.full(len(wanted), -1)
    known, first = np.unique(ids, return_index=True)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, first[at], -1)


def _particle_of(
    simulated: np.ndarray, table: np.ndarray, hits_at: str, particles_at: str
) -> Int64[np.ndarray, " simulated"]:
    """Row of the particle of each simulated hit."""
    of_hits, of_particles = _names(simulated), _names(table)
    if of_hits.shape[1] != of_particles.shape[1]:
        raise UserError(
            f"{hits_at}: names particles in another way than {particles_at}; take both "
            "files from one release of ACTS."
        )
    both = np.concatenate([of_particles, of_hits])
    number = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    row = np.full(number.max() + 1, -1)
    row[number[: len(table)]] = np.arange(len(table))
    if np.count_nonzero(row >= 0) < len(table):
        raise UserError(f"{particles_at}: a particle occurs twice; remove one of its rows.")
    found = row[number[len(table) :]]
    if (found < 0).any():
        bad = ", ".join(map(str, of_hits[found < 0][0].tolist()))
        raise UserError(
            f"{hits_at}: the particle ({bad}) is not in {particles_at}; add the file "
            "of all simulated particles, particles_simulated.csv."
        )
    return found


def _names(table: np.ndarray) -> Int64[np.ndarray, "row part"]:
    """The barcode of each row's particle, in one number or in five."""
    columns = table.dtype.names or ()
    parts = ("particle_id",) if "particle_id" in columns else tuple(_BARCODE)
    return np.stack([table[name].astype(np.int64) for name in parts], axis=1)


def _particle_ids(table: np.ndarray) -> Int64[np.ndarray, " particle"]:
    """One number for each particle, as in older files; row plus 1 if any does not fit or is 0."""
    names = _names(table)
    if names.shape[1] == 1:
        packed = names[:, 0]
    else:
        bits = np.array([*_BARCODE.values()])
        if (names < 0).any() or (names >> bits[None, :]).any():
            return np.arange(1, len(table) + 1)
        packed = np.zeros(len(table), np.int64)
        for name, width in zip(names.T, bits.tolist(), strict=True):
            packed = packed << width | name
    return packed if (packed != 0).all() else np.arange(1, len(table) + 1)


def _particles(table: np.ndarray, where: str, hit_particle: np.ndarray) -> Particles:
    charge = np.round(table["q"])
    is_wrong = (charge != table["q"]) | (np.abs(charge) >= 2**31)
    if is_wrong.any():
        raise UserError(
            f"{where}: q of a particle is {table['q'][is_wrong][0]}; expected a whole number of "
            "charges of the positron."
        )
    return Particles(
        particle_id=_particle_ids(table),
        vertex=_stacked(table, ("vx", "vy", "vz")),
        momentum=_stacked(table, ("px", "py", "pz")),
        charge=charge.astype(np.int32),
        num_hits=np.bincount(hit_particle, minlength=len(table)).astype(np.int32),
    )


def _modules(geometry: np.ndarray) -> Int64[np.ndarray, "hit 3"]:
    """Volume, layer and sensitive number of ACTS's geometry identifiers."""
    fields = ((56, 8), (36, 12), (8, 20))
    parts = [(geometry >> np.uint64(at)) & np.uint64(2**width - 1) for at, width in fields]
    return np.stack(parts, axis=1).astype(np.int64)


def _stacked(table: np.ndarray, names: tuple[str, ...]) -> Float32[np.ndarray, "row 3"]:
    return np.stack([table[name] for name in names], axis=1)


def _majority(hit_particle: np.ndarray) -> tuple[int, int]:
    """The particle with most hits of a track, and how many these are."""
    particles, counts = np.unique(hit_particle[hit_particle != NOISE], return_counts=True)
    if not len(particles):
        return NOISE, 0
    best = counts.argmax()
    return int(particles[best]), int(counts[best])


def _kinds(sizes: list[int], majority: list[tuple[int, int]], has_truth: bool) -> list[str]:
    """ACTS's type of each track."""
    if not has_truth:
        return ["unknown"] * len(sizes)
    kinds = ["fake"] * len(sizes)
    best: dict[int, int] = {}
    for number, (size, (particle, shared)) in enumerate(zip(sizes, majority, strict=True)):
        if shared and 2 * shared >= size:
            kinds[number] = "duplicate"
            if particle not in best or shared > majority[best[particle]][1]:
                best[particle] = number
    for number in best.values():
        kinds[number] = "good"
    return kinds


def _barcode(particle_id: int) -> str:
    """A particle's barcode as ACTS prints it."""
    parts = []
    for width in reversed(_BARCODE.values()):
        parts.append(particle_id & (1 << width) - 1)
        particle_id >>= width
    pv, sv, particle, generation, sub = reversed(parts)
    return f"vp={pv}|vs={sv}|p={particle}|g={generation}|sp={sub}"
