"""Damaged files of other programs: each is read to something valid, or refused in one sentence.

Most of these formats have no checksums, so a changed number may be read as it stands.
"""

import importlib
import random
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from hypertrack_jax.events.acts_csv import read_acts_event
from hypertrack_jax.events.colliderml import read_colliderml_events
from hypertrack_jax.events.trackml import read_event
from hypertrack_jax.model.published_net import read_published_net, write_published_net
from hypertrack_jax.tunes.tune_5 import TUNE
from hypertrack_jax.voxdyn.published_voxdyn import read_published_voxdyn
from studies.faults.mutations import damaged, outcome, validated
from studies.faults.toy_work import ROOT


def damaged_format(name: str, workdir: Path, number: int) -> str:
    """Damages one of the files of a format at random, and reads them."""
    rng = random.Random(f"{name} {number}")
    make, read = FORMATS[name]
    place = made(make, workdir / f"formats_{name}")
    files = sorted(path for path in place.rglob("*") if path.is_file())
    path = rng.choice(files)
    content = path.read_bytes()
    path.write_bytes(damaged(content, rng))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            ended = outcome(lambda: read(place), None)
    finally:
        path.write_bytes(content)
    if sorted(path for path in place.rglob("*") if path.is_file()) != files:
        return "wrong: a file was written"
    return ended


@cache
def made(make: Callable[[Path], object], place: Path) -> Path:
    """A directory with whole files."""
    place.mkdir(parents=True, exist_ok=True)
    for folder in ("tests", "tests/events"):
        # The tests are in the repository; the wheel has neither them nor this script.
        sys.path.insert(0, str(ROOT / folder))
    make(place)
    return place


def acts(place: Path) -> None:
    """Hits, particles, measurements, links, cells and the list of modules."""
    files = importlib.import_module("test_acts_csv")
    texts = {"measurements": files.MEASURED, "measurement_simhit_map": files.LINKS}
    files.write(place, **texts, cells=files.CELLS)
    (place / "detectors.csv").write_text(files.DETECTOR)


def trackml_cells(place: Path) -> None:
    """An event of TrackML with cells and the list of modules."""
    files = importlib.import_module("test_cells")
    for kind, text in files.FILES.items():
        (place / f"event000000007-{kind}.csv").write_text(text)
    (place / "detectors.csv").write_text(files.DETECTOR)


def colliderml(place: Path) -> None:
    """Both tables of five events."""
    files = importlib.import_module("test_colliderml")
    files.write(place, files.hit_rows(files.EVENTS), "tracker_hits")
    files.write(place, files.particle_rows(files.EVENTS), "particles")


def constructor(place: Path) -> None:
    """A small graph constructor."""
    files = importlib.import_module("published_files")
    files.write(place / "voxdyn.pkl", files.random_content(num_cells=12))


def net(place: Path) -> None:
    """Random weights of tune-5."""
    jax = importlib.import_module("jax")
    parameters = importlib.import_module("hypertrack_jax.model.parameters")
    shapes = jax.eval_shape(lambda: parameters.init_parameters(TUNE, jax.random.key(0)))
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(lambda leaf: rng.random(leaf.shape).astype(np.float32), shapes)
    write_published_net(place / "net.pt", TUNE, arrays, 1)


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "ACTS csv": (
        acts,
        lambda p: validated(read_acts_event(p, 7, detector=p / "detectors.csv")),
    ),
    "TrackML cells": (trackml_cells, lambda place: validated(read_event(place, 7))),
    "ColliderML": (
        colliderml,
        lambda place: [validated(one.event) for one in read_colliderml_events(place)],
    ),
    "published constructor": (
        constructor,
        lambda place: read_published_voxdyn(place / "voxdyn.pkl"),
    ),
    "published weights": (net, lambda place: read_published_net(place / "net.pt")),
}
"""What makes the files of a format, and what reads them."""
