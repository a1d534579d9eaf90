"""The command `hypertrack`: files in, submissions and scores out, and mistakes in one sentence."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK

from hypertrack_jax.command import main as command
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.events.event import no_particles
from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.trackml import write_event_csv, write_submission
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.model.weights import Weights, save_weights, shipped_names
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.compact import compact_voxdyn
from hypertrack_jax.voxdyn.fit import fit_voxdyn

ROOT = Path(__file__).parents[2]
EVENTS = {number: helix_event(0, 8, event_id=number) for number in (1, 2, 3, 4)}
EVENTS[1] = EVENTS[1]._replace(hit_id=EVENTS[1].hit_id[::-1].copy() * 3)


def blind(event):
    num_hits = len(event.position)
    nothing = np.full(num_hits, -1, np.int32), np.zeros(num_hits), no_particles(), False
    names = ("hit_particle", "hit_weight", "particles", "has_truth")
    return event._replace(**dict(zip(names, nothing, strict=True)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of fresh weights in one file. It joins all hits that have edges."""
    cluster = ClusterTune(cluster="cut", edge_threshold=0.0)
    network = replace(SMALL_NETWORK, num_heads=1)
    tune = Tune("small", VoxdynTune(ncell=64, min_count=2), network=network, cluster=cluster)
    voxdyn = fit_voxdyn(list(EVENTS.values()), 64, "hyper", num_iterations=1)
    parameters = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    weights = Weights(tune, *parameters, count_pairs(voxdyn), compact_voxdyn(voxdyn))
    return save_weights(tmp_path_factory.mktemp("model") / "small.npz", weights)


@pytest.fixture
def files(tmp_path):
    """Event 1 as TrackML files, 2 without truth in a zip, 3 and 4 in event files."""
    write_event_csv(tmp_path / "csv", EVENTS[1])
    write_event_csv(tmp_path / "blind", blind(EVENTS[2]), compress=True)
    with zipfile.ZipFile(tmp_path / "blind.zip", "w") as archive:
        for path in (tmp_path / "blind").iterdir():
            archive.write(path, f"train/{path.name}")
    for number in (3, 4):
        save_event(tmp_path / "data", EVENTS[number])
    return tmp_path


def run(*arguments) -> int:
    """The exit status of the command."""
    try:
        command.run(["hypertrack", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


def tracks_in(directory: Path, number: int) -> np.ndarray:
    path = directory / f"event{number:09d}-submission.csv"
    return np.loadtxt(path, delimiter=",", skiprows=1, dtype=int)


def summary(told: str) -> dict[str, list[float]]:
    """Mean and number of values of each quantity in the last table; without values, 0 alone."""
    lines = told[told.index("| quantity") :].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {name: [float(cell) for cell in (mean, n) if cell != "-"] for name, mean, _, n in cells}


def test_events_wherever_they_lie_are_reconstructed(model, files, capsys):
    paths = files / "csv", files / "blind.zip", files / "data"
    found = files / "found"
    assert run("reconstruct", *paths, f"--model={model}", f"--output={found}") == 0
    load = Reconstructor.load(model)
    for number, event in EVENTS.items():
        event_id, hit_id, track_id = tracks_in(found, number).T
        assert (event_id == number).all()
        np.testing.assert_array_equal(hit_id, event.hit_id)
        np.testing.assert_array_equal(track_id, load(event.position).hit_label + 1)
        assert track_id.max() > 0
    told = capsys.readouterr()
    assert f"tracks of 4 events in {found}" in told.out
    assert "4/4" in told.err  # the progress bar
    scored = [
        track_scores(EVENTS[number], load(EVENTS[number].position).hit_label).dms
        for number in (1, 3, 4)
    ]
    means = summary(told.out)
    assert means["DMS"] == [pytest.approx(np.mean(scored), abs=1e-4), 3]
    assert means["hits"][1] == 4
    # Without truth the columns that need it are empty.
    assert re.search(r"^\| 2 [| \d]*[| -]*$", told.out, re.MULTILINE)


def test_it_goes_on_after_a_bad_event_and_where_it_stopped(model, files, capsys):
    bad = files / "data" / "event000000003.npz"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-10])
    arguments = ("reconstruct", files / "data", files / "csv", f"--model={model}")
    arguments += (f"--output={files / 'found'}",)
    assert run(*arguments) == 1
    told = capsys.readouterr().err
    assert f"error: 1 events were left out:\n{bad}: damaged" in told
    names = ["event000000001-submission.csv", "event000000004-submission.csv"]
    assert sorted(path.name for path in (files / "found").iterdir()) == names
    first = {name: (files / "found" / name).stat().st_mtime_ns for name in names}

    bad.write_bytes(whole)
    assert run(*arguments) == 0
    assert "2 of 3 events have their tracks" in capsys.readouterr().out
    assert {name: (files / "found" / name).stat().st_mtime_ns for name in names} == first
    assert len(tracks_in(files / "found", 3)) == len(EVENTS[3].position)
    assert run(*arguments) == 0
    assert "3 of 3 events have their tracks" in capsys.readouterr().out


def test_workers_of_a_cluster_find_the_same_tracks(model, files, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed", reason="needs the extra cluster")
    monkeypatch.chdir(files)
    assert run("reconstruct", "data", "csv", f"--model={model}", "--output=alone") == 0
    alone = capsys.readouterr().out
    # In this process, which has loaded jax and compiled the programs.
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        arguments = "data", "csv", f"--model={model}", "--output=shared"
        status = run("reconstruct", *arguments, f"--scheduler={cluster.scheduler_address}")
    assert status == 0
    for number in (1, 3, 4):
        np.testing.assert_array_equal(
            tracks_in(files / "shared", number), tracks_in(files / "alone", number)
        )
    assert capsys.readouterr().out.split("\n\n")[0] == alone.split("\n\n")[0]


def test_without_distributed_the_extra_is_named(model, files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "hypertrack_jax.evaluation.cluster_files", raising=False)
    arguments = files / "data", f"--model={model}", f"--output={files / 'found'}"
    assert run("reconstruct", *arguments, "--scheduler=tcp://x:1") == 2
    assert "pip install 'hypertrack-jax[cluster]'" in capsys.readouterr().err


def test_a_model_that_needs_cells_says_so(files, capsys):
    arguments = files / "data", "--model=cells", f"--output={files / 'found'}"
    assert run("reconstruct", *arguments) == 1
    told = capsys.readouterr().err
    assert "event 3: this model looks at the shape of the hits' clusters" in told
    assert "there are no cells; give an event that has cells" in told


def test_pages_of_the_first_events_are_written(model, files):
    pytest.importorskip("plotly", reason="needs the extra plots")
    found = files / "found"
    run("reconstruct", files / "data", f"--model={model}", f"--output={found}", "--pages=1")
    assert [path.name for path in found.glob("*.html")] == ["event000000003.html"]
    assert "<title>Event 3</title>" in (found / "event000000003.html").read_text()
    assert list(json.loads((found / "event000000003.json").read_text())) == ["Event 3"]


MISTAKES = {
    "no verb": ([], "expected hypertrack reconstruct or hypertrack score, got ''"),
    "a wrong verb": (["recon"], "got 'recon'"),
    "no path": (["reconstruct"], "a path is missing"),
    "a wrong path": (["reconstruct", "{files}/nowhere"], "nowhere: no such directory or zip"),
    "no such event": (
        ["reconstruct", "{files}/csv/event000000009"],
        r"event000000009-hits.csv: no",
    ),
    "no event": (["reconstruct", "{files}/none"], "none: no event in it; expected event"),
    "an empty zip": (["reconstruct", "{files}/empty.zip"], "empty.zip: no event in it"),
    "an event twice": (
        ["reconstruct", "{files}/csv", "{files}/again"],
        "event 1 is in {files}/csv and in {files}/again",
    ),
    "an unknown model": (
        ["reconstruct", "{files}/csv", "--model=pu3", "--output={files}/o"],
        f"pu3: no such model; .* package: {', '.join(shipped_names())}",
    ),
    "no place to write": (
        ["reconstruct", "{files}/csv", "--output={files}/blind.zip/x"],
        "blind.zip/x: cannot be written .* choose a directory that you may write to",
    ),
    "a misspelt flag": (
        ["reconstruct", "{files}/csv", "--modell=x"],
        "'modell'. Did you mean: mod",
    ),
    "an empty flag": (["reconstruct", "{files}/csv", "--model="], "--model=: a value is missing"),
    "one path": (["score", "{files}/csv"], "expected two paths, TRUTH and SUBMISSION, but got 1"),
    "no submission": (["score", "{files}/csv", "{files}/nowhere.csv"], "nowhere.csv: no such file"),
    "none in a directory": (["score", "{files}/csv", "{files}/none"], "none: no .*submission.csv"),
    "no column": (["score", "{files}/csv", "{files}/wrong.csv"], "wrong.csv: no column 'track_id'"),
    "which event": (
        ["score", "{files}/data", "{files}/plain.csv"],
        "plain.csv: has no column event_id, but there are 2 events",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(files, capsys, mistake):
    (files / "none").mkdir()
    zipfile.ZipFile(files / "empty.zip", "w").close()
    write_event_csv(files / "again", EVENTS[1])
    (files / "wrong.csv").write_text("hit_id,track\n1,1\n")
    (files / "plain.csv").write_text("hit_id,track_id\n1,1\n")
    arguments, message = MISTAKES[mistake]
    status = run(*(argument.replace("{files}", str(files)) for argument in arguments))
    told = capsys.readouterr().err
    assert status == 2
    pattern = message.replace("{files}", str(files))
    assert len(told.splitlines()) == 1 and told.startswith("error: ")
    assert re.search(pattern, told), told


@pytest.mark.parametrize("places", ["csv", "csv/event000000001", "csv/event000000001-truth.csv"])
def test_any_track_labels_are_scored(files, capsys, places):
    """A file of one event needs no column event_id; hits that it leaves out are in no track."""
    event = EVENTS[1]
    label = np.where(event.hit_particle > 2, event.hit_particle, -1)
    rows = [
        f"{hit},{track * 7}" for hit, track in zip(event.hit_id, label, strict=True) if track > 2
    ]
    (files / "mine.csv").write_text("\n".join(["hit_id,track_id", *rows[::-1]]))
    assert run("score", files / places, files / "mine.csv") == 0
    told = capsys.readouterr().out
    means = summary(told)
    assert (means["efficiency"], means["purity"]) == ([5 / 8, 1], [1, 1])
    assert re.search(r"\| ours: double majority, 4 hits +\| +0\.625 \|", told)


def test_many_events_are_scored_and_what_is_missing_is_told(files, capsys):
    for number in (1, 3):
        path = files / "found" / f"event{number:09d}-submission.csv"
        write_submission(path, EVENTS[number], EVENTS[number].hit_particle)
    one = files / "all.csv"
    parts = [path.read_text().splitlines() for path in sorted((files / "found").iterdir())]
    one.write_text("\n".join(parts[0] + parts[1][1:]))
    for submissions in (files / "found", one):
        assert run("score", files / "data", submissions) == 1
        told = capsys.readouterr()
        assert "event 1: there is a submission, but no truth." in told.err
        assert "event 4: there is truth, but no submission." in told.err
        # Noise hits have the track 0, and that is none.
        assert summary(told.out)["DMS"] == summary(told.out)["purity"] == [1, 1]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("1,1\n1,2", r"hit_id 1 of event 1 occurs more than once"),
        ("99999,1", r"hit_id 99999 is not in event 1"),
    ],
)
def test_hits_that_are_not_those_of_the_event_are_told(files, capsys, rows, reason):
    (files / "bad.csv").write_text(f"hit_id,track_id\n{rows}\n")
    assert run("score", files / "csv", files / "bad.csv") == 1
    assert reason in capsys.readouterr().err


def test_scores_need_truth(files, capsys):
    write_submission(files / "x.csv", EVENTS[2], EVENTS[2].hit_particle)
    assert run("score", files / "blind.zip", files / "x.csv") == 1
    assert "event 2 has no truth" in capsys.readouterr().err


def test_the_installed_command_is_this_one_and_explains_itself():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["hypertrack"].split(":")
    assert getattr(importlib.import_module(module), name) is command.main
    program = f"from {module} import {name}; {name}()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    assert "hypertrack reconstruct PATH..." in done.stdout
    for flag in (
        "--model",
        "--output",
        "--voxdyn",
        "--device",
        "--min_hits",
        "--compilation_cache",
    ):
        assert flag in done.stdout


def test_a_wrong_path_is_told_before_jax_is_loaded():
    program = """
import sys
from hypertrack_jax.command.main import run
try:
    run(sys.argv)
finally:
    print("jax" in sys.modules)
"""
    command = [sys.executable, "-c", program, "reconstruct", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
