"""Host side: joins the truth and the particles of TrackML's events to their hits."""

import numpy as np
from jaxtyping import Float64, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.archives import Files
from hypertrack_jax.events.csv_table import read_table, require_finite
from hypertrack_jax.events.event import NOISE, Event, Particles

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
# The files print six digits, so the weights of a whole event sum to 1 within about 1e-6.
_WEIGHT_SUM_TOLERANCE = 1e-5


def with_truth(
    event: Event,
    where: dict[str, str],
    names: dict[str, str],
    files: Files,
    lenient: bool,
    notes: list[str],
) -> Event:
    """The event with its particles, and the particle and weight of each hit.

    Args:
      event: the event without truth.
      where: path of each kind of file, for messages.
      names: name of each kind of file in `files`.
      files: functions that read the files.
      lenient: as in `trackml.read_event`.
      notes: warnings are appended to it.

    Returns:
      The event; `num_hits` of its particles is 0 until `counted_particles`.

    Raises:
      FileNotFoundError: there is no file of particles.
      UserError: a file is damaged, or does not fit the hits.
    """
    if "particles" not in names:
        raise FileNotFoundError(
            f"{where['truth']}: there is truth, but no particles file; add "
            f"event{event.event_id:09d}-particles.csv, or remove the truth."
        )
    optional = ("weight",) if lenient else ()
    truth = read_table(where["truth"], files[names["truth"]](), _TRUTH_COLUMNS, optional)
    # `nhits` is not used, but a file where it is not a number is damaged.
    columns, optional = {**_PARTICLE_COLUMNS, "nhits": np.float64}, ("nhits",)
    table = read_table(where["particles"], files[names["particles"]](), columns, optional)
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
    # 0, which stands for noise, is no particle's id: it finds -1, which is NOISE.
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


def counted_particles(event: Event) -> Particles:
    """The particles of an event, with `num_hits` counted."""
    is_particle = event.hit_particle != NOISE
    num_particles = len(event.particles.particle_id)
    num_hits = np.bincount(event.hit_particle[is_particle], minlength=num_particles)
    return event.particles._replace(num_hits=num_hits.astype(np.int32))


def unit_weights(
    weight: Float64[np.ndarray, " hit"], where: str, notes: list[str]
) -> Float64[np.ndarray, " hit"]:
    """The weights, scaled to sum to 1; unchanged if they do up to rounding, or are all 0.

    A warning about scaling is appended to `notes`.

    Raises:
      UserError: one is negative, or their sum is infinite.
    """
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


def _particles(table: np.ndarray, where: str, notes: list[str]) -> Particles:
    """The particles of a table; `num_hits` is not counted yet."""
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
