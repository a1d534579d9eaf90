"""The scripts, run as a user runs them: the whole road on toy events, and what users get wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from bad_events import ReadableEvents

from hypertrack_jax.events.store import save_event
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.batches import EventSource

ROOT = Path(__file__).parents[2]
TINY_TUNE = """
from hypertrack_jax.tunes.tune import NetworkTune, OptimizerTune, Tune, VoxdynTune

TUNE = Tune(
    name="tiny",
    voxdyn=VoxdynTune(ncell=64),
    network=NetworkTune("cylindrical", "helix", 2, 8, 9, (6,)),
    optimizer=OptimizerTune(learning_rate=5e-3),
)
"""
RANGE = ("--event_start=1,11", "--event_end=6,12")


def script(workdir: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs experiments/{name}.py on the CPU with its --workdir."""
    command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*command, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory with eight toy events, Voxel-Dynamics and a model of six steps."""
    directory = tmp_path_factory.mktemp("road")
    for event_id in (*range(1, 7), 11, 12):
        save_event(directory / "data", toy.helix_event(event_id, 30, event_id=event_id))
    (directory / "tiny.py").write_text(TINY_TUNE)
    fitted = script(directory, "pretrain_voxdyn", "--ncell=64,128", *RANGE)
    assert fitted.returncode == 0, fitted.stderr
    trained = train(directory, "--num_steps=6", "--validate=1")
    assert trained.returncode == 0, trained.stderr
    return directory


def train(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Trains the tiny tune on whole events."""
    return script(
        directory,
        "train",
        f"--param={directory / 'tiny.py'}",
        "--save_tag=tiny",
        "--rfactor_start=1",
        "--rfactor_end=1",
        "--validation_start=11",
        "--validation_end=12",
        *RANGE,
        *arguments,
    )


def test_training_leaves_a_checkpoint_and_scalars(workdir):
    assert (workdir / "models" / "tiny" / "6").is_dir()
    assert list((workdir / "runs" / "tiny").glob("events.out.tfevents*"))


def test_training_goes_on_where_it_stopped(workdir):
    done = train(workdir, "--num_steps=8")
    assert done.returncode == 0, done.stderr
    assert "resuming tiny from step 6" in done.stderr
    assert (workdir / "models" / "tiny" / "8").is_dir()


def test_inference_scores_events_and_writes_submissions(workdir):
    submissions = workdir / "submissions"
    done = script(
        workdir,
        "inference",
        "--read_tag=tiny",
        "--event_start=11",
        "--event_end=12",
        f"--submission_dir={submissions}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "figs" / "tiny" / "report.json").read_text())
    assert [row["event"] for row in report["events"]] == [11, 12]
    for column in ("VD TPR", "VD FPR", "GNN TPR", "GNN FPR", "GNN AUC", "DMS", "TrackML"):
        assert 0 <= report["summary"][column]["mean"] <= 1
        assert column in done.stdout
    # Two devices share the events, as conftest has them, and compile for their only batch.
    assert "2 of 2 events have no milliseconds" in done.stdout
    assert "Several devices shared the events" in done.stdout
    event = toy.helix_event(11, 30, event_id=11)
    written = np.loadtxt(
        submissions / "event000000011-submission.csv", delimiter=",", skiprows=1, dtype=int
    )
    assert (written[:, 0] == 11).all()
    assert sorted(written[:, 1]) == sorted(event.hit_id)


def test_a_model_is_shipped_as_one_file(workdir, tmp_path):
    whole, alone = tmp_path / "whole.npz", tmp_path / "alone.npz"
    fitted = workdir / "models" / "voxdyn_hyper_64.npz"
    for path, more in ((whole, [f"--voxdyn={fitted}"]), (alone, [])):
        done = script(workdir, "ship_weights", "--read_tag=tiny", f"--output={path}", *more)
        assert done.returncode == 0, done.stderr
    found, expected = Reconstructor.load(whole), Reconstructor.load("tiny", workdir / "models")
    assert found.tune == expected.tune
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    np.testing.assert_array_equal(found.voxdyn.rows.columns, expected.voxdyn.rows.columns)
    with pytest.raises(FileNotFoundError, match="voxdyn_hyper_64"):
        Reconstructor.load(alone)


def test_an_event_that_cannot_be_read_is_listed_and_the_others_go_on(workdir, tmp_path):
    (tmp_path / "models").symlink_to(workdir / "models")
    (tmp_path / "data").mkdir()
    for path in (workdir / "data").iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "data" / "event000000011.npz"
    bad.write_bytes(bad.read_bytes()[:-10])
    which = ("--event_start=11", "--event_end=12")
    done = script(tmp_path, "inference", "--pre_only", "--node2node=hyper", "--ncell=64", *which)
    assert done.returncode == 1
    assert re.search(rf"^error: 1 events were left out:\n{bad}: .*\n\Z", done.stderr, re.M)
    report = json.loads((tmp_path / "figs" / "graphs_hyper_64" / "report.json").read_text())
    assert [row["event"] for row in report["events"]] == [12]
    judged = ("--eval_start=11", "--eval_end=12", "--rfactors=0.5,1", "--niter=0", "--ncell=32,48")
    done = script(tmp_path, "pretrain_voxdyn", "--event_start=1", "--event_end=6", *judged)
    assert done.returncode == 1
    assert done.stdout.count("graphs of 1 events at rfactor") == 4
    assert re.search(rf"^error: 1 events were left out:\n{bad}: .*\n\Z", done.stderr, re.M)


def test_events_that_are_read_twice_are_told_once(tmp_path):
    save_event(tmp_path, toy.helix_event(2, 5, event_id=2))
    events = ReadableEvents(EventSource(tmp_path, [1, 2], 1.0, 1.0, -1, 0))
    for _ in range(2):
        assert [event.event_id for event in events] == [2]
    assert len(events.problems) == 1


MISTAKES = {
    "misspelt topology": ("train", ["--save_tag=x", "--node2node=hypr"], "node2node=hypr.*hyper"),
    "misspelt schedule": ("train", ["--save_tag=x", "--scheduler_type=warm"], "warm-cos"),
    "misspelt clusterer": ("inference", ["--read_tag=tiny", "--cluster=cat"], "--cluster=cat.*cut"),
    "misspelt tune": ("train", ["--save_tag=x", "--param=tune5"], "param=tune5 .*tune-5, helix"),
    "stray argument": ("train", ["--save_tag=x", "hyper"], "'hyper'"),
    "missing events": (
        "inference",
        ["--read_tag=tiny", "--event_start=11", "--event_end=14"],
        r"event000000013\.npz.*2 of 4.*simulate\.py",
    ),
    "no Voxel-Dynamics": (
        "train",
        ["--save_tag=x", "--param=helix", "--ncell=77", *RANGE],
        r"voxdyn_hyper_77\.npz.*pretrain_voxdyn\.py --node2node=hyper --ncell=77",
    ),
    "no such tag": (
        "inference",
        ["--read_tag=nobody", "--event_start=11", "--event_end=12"],
        "nobody: no such model",
    ),
    "no such step": (
        "inference",
        ["--read_tag=tiny", "--epoch=5", "--event_start=11", "--event_end=12"],
        "tiny.*no step 5",
    ),
    "another tune": (
        "inference",
        ["--read_tag=tiny", "--param=tune-5", "--event_start=11", "--event_end=12"],
        "node_features is 'cylindrical', but 'cartesian'",
    ),
    "another number of cells": (
        "inference",
        ["--read_tag=tiny", "--ncell=128", "--event_start=11", "--event_end=12"],
        "voxdyn.ncell is 64, but 128",
    ),
    "no such device": (
        "train",
        ["--save_tag=x", "--device=tpu", *RANGE],
        "--device=tpu: jax finds",
    ),
    "a rate that is no number": (
        "train",
        ["--save_tag=x", "--learning_rate=nan", *RANGE],
        "--learning_rate=nan: expected a number above 0",
    ),
    "a million events and more": (
        "train",
        ["--save_tag=x", "--event_start=0", "--event_end=999999999"],
        "1000000000 events, more than",
    ),
    "more cells than hits": ("pretrain_voxdyn", ["--ncell=1000000", *RANGE], "1000000"),
    "noise ratio in words": (
        "inference",
        ["--read_tag=tiny", "--noise_ratio=some", "--event_start=11", "--event_end=12"],
        "--noise_ratio=some",
    ),
    "nothing to compare with": (
        "cluster_throughput",
        ["--workers=2,4"],
        "--workers=2,4: the first number must be 1",
    ),
    "misspelt flag": ("train", ["--save_tagg=x"], "'save_tagg'. Did you mean: save_tag"),
}


FORKING = """
import json, os, runpy, sys
import jax, optax, orbax.checkpoint
import hypertrack_jax.evaluation.inference_report, hypertrack_jax.reconstruction.reconstructor
import hypertrack_jax.training.loop

scripts, models = sys.argv[1:]
sys.path.insert(0, scripts)
for name, *arguments in json.load(sys.stdin):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.dup2(writer, 2)
        sys.argv = [f"{scripts}/{name}.py", *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    os.close(writer)
    told = open(reader).read()
    _, status = os.waitpid(child, 0)
    done = [os.waitstatus_to_exitcode(status), told, sorted(os.listdir(models))]
    # Flushed: what waits here would be written by the next child, too.
    print(json.dumps(done), flush=True)
"""
"""Runs scripts in processes that have imported already what takes a second or two each."""


@pytest.fixture(scope="module")
def ends(workdir):
    """How each script with a mistake ended: status, what it told, and the models then."""
    commands = [[name, *rest, f"--workdir={workdir}"] for name, rest, _ in MISTAKES.values()]
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(ROOT / "experiments"), str(workdir / "models")],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(MISTAKES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gets_one_sentence(workdir, ends, mistake):
    status, told, models = ends[mistake]
    assert status != 0
    assert re.search(MISTAKES[mistake][-1], told, re.DOTALL), told
    assert "Traceback" not in told
    assert models == sorted(path.name for path in (workdir / "models").iterdir())


def test_work_directory_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "data").symlink_to(workdir / "data")
    (tmp_path / "models").write_text("a file where a directory should be")
    done = script(tmp_path, "pretrain_voxdyn", "--ncell=64", *RANGE)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr and "models" in done.stderr
    assert "Traceback" not in done.stderr


def test_checkpoints_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "data").symlink_to(workdir / "data")
    (tmp_path / "models").mkdir()
    for file in (workdir / "models").glob("*.npz"):
        (tmp_path / "models" / file.name).symlink_to(file)
    (tmp_path / "models" / "tiny").write_text("a file where the tag's directory should be")
    (tmp_path / "tiny.py").write_text(TINY_TUNE)
    done = train(tmp_path, "--num_steps=1")
    assert done.returncode == 2
    assert str(tmp_path / "models" / "tiny") in done.stderr
    assert "Traceback" not in done.stderr
