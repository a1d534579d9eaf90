"""Damaged files: each is read as it was, or refused in one sentence."""

import importlib
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import validate_event
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.trackml import read_event
from hypertrack_jax.model.weights import load_weights
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.voxdyn.storage import load_voxdyn
from studies.faults.toy_work import copied

CSV_FILES = ("hits", "particles", "truth")
MUST_BE_REFUSED = ("a field less", "a field more", "a column twice", "not a number")
FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "event": ("data/event000000001.npz", lambda w: load_event(w / "data", 1)),
    "constructor": ("models/voxdyn_hyper_64.npz", lambda w: load_voxdyn(last(w, "voxdyn*"))),
    "weights": ("models/weights.npz", lambda w: load_weights(w / "models" / "weights.npz")),
    "checkpoint": ("models/tiny", lambda w: arrays(Reconstructor.load("tiny", w / "models"))),
    "artefact": ("tiny.jaxexport", lambda w: reconstructed(w / "tiny.jaxexport")),
}


def mutated_file(name: str, workdir: Path, number: int) -> str:
    """Flips a bit, zeroes, cuts or lengthens a file at random, and reads it."""
    rng = random.Random(f"{name} {number}")
    where, read = FILES[name]
    place = copy_for(name, workdir)
    target = place / where
    files = sorted(path for path in target.rglob("*") if path.is_file()) or [target]
    path = rng.choice(files)
    content = path.read_bytes()
    path.write_bytes(damaged(content, rng))
    try:
        return outcome(lambda: read(place), original(name, workdir))
    finally:
        path.write_bytes(content)


@cache
def copy_for(name: str, workdir: Path) -> Path:
    """Files to damage, whole at the start of each process: the last one may have crashed."""
    names = ("csv",) if name == "csv" else ("models", "data", "tiny.jaxexport")
    return copied(workdir, workdir / f"mutated_{name}", *names)


@cache
def original(name: str, workdir: Path) -> object:
    """What the undamaged file holds."""
    return FILES[name][1](workdir)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one fault."""
    changed, start = bytearray(content), rng.randrange(max(1, len(content)))
    how = rng.choice(("flip", "zero", "cut", "repeat", "longer"))
    if how == "flip" and content:
        changed[start] ^= 1 << rng.randrange(8)
    elif how == "zero":
        end = min(len(changed), start + rng.choice((1, 8, 64, 4096)))
        changed[start:end] = bytes(end - start)
    elif how == "cut":
        del changed[start:]
    elif how == "repeat":
        changed[start:start] = changed[start : start + 64]
    else:
        changed += rng.randbytes(16)
    return bytes(changed)


def mutated_csv(workdir: Path, number: int) -> str:
    """Changes one of the files of a TrackML event, and reads the event."""
    rng = random.Random(f"csv {number}")
    place = copy_for("csv", workdir) / "csv"
    path = place / f"event000000001-{rng.choice(CSV_FILES)}.csv"
    content = path.read_bytes()
    how = rng.choice((*MUST_BE_REFUSED, "bytes", "bytes", "a row less", "a row twice"))
    path.write_bytes(damaged(content, rng) if how == "bytes" else changed_rows(content, how, rng))
    try:
        ended = outcome(lambda: validated(read_event(place, 1)), None)
    finally:
        path.write_bytes(content)
    is_wrong = ended == "right" and how in MUST_BE_REFUSED
    return f"wrong: {how} in {path.name} is read" if is_wrong else ended


def changed_rows(content: bytes, how: str, rng: random.Random) -> bytes:
    """The table with one change of the kind named."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = rows[rng.randrange(1, len(rows))]
    column = rng.randrange(len(row))
    if how == "a field less":
        del row[column]
    elif how == "a field more":
        row.insert(column, "1")
    elif how == "a column twice":
        for line in rows:
            line.append(line[column])
    elif how == "not a number":
        row[column] = rng.choice(("nan", "inf", "x", "", "1e400"))
    elif how == "a row less":
        rows.remove(row)
    else:
        rows.append(row)
    return ("\n".join(",".join(line) for line in rows) + "\n").encode()


def outcome(read: Callable[[], object], expected: object) -> str:
    """Reads, and names the outcome; with `expected` None any content that can be read is right."""
    try:
        found = read()
    except (UserError, OSError) as error:
        told = str(error)
        is_sentence = "\n" not in told and len(told) < 1000
        return "refused" if is_sentence else f"wrong: a message of {len(told)} characters"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {general(str(error))}"
    same = expected is None or (
        jax.tree.structure(found) == jax.tree.structure(expected)
        and jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    )
    return "right" if same else "wrong: other content is read in silence"


def general(message: str) -> str:
    """A message without what differs from try to try, so that equal faults are counted together."""
    without_values = re.sub(r"'[^']*'|/\S+/", "*", message)
    return re.sub(r"[\d.]+", "#", without_values)[:150].replace("\n", " ")


def validated(event):
    """The event, if it is valid."""
    validate_event(event, "read")
    return event


def arrays(model: Reconstructor):
    """The trained arrays of a model."""
    return model.params, model.batch_stats


def reconstructed(path: Path):
    """What an exported model finds in a few hits."""
    hits = np.random.default_rng(0).normal(0, 300, (20, 3)).astype(np.float32)
    try:
        program = importlib.import_module("exported").load(path)
    # exported.py does not know `UserError`.
    except ValueError as error:
        raise UserError(str(error)) from error
    return program(hits)


def last(workdir: Path, pattern: str) -> Path:
    """The last file of that pattern among the models."""
    return sorted((workdir / "models").glob(f"{pattern}.npz"))[-1]
