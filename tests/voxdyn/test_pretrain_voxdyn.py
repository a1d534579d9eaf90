"""The scripts that fit Voxel-Dynamics and judge its graphs, run as a user would."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def workdir(tmp_path):
    for event_id in (5, 6, 9):
        save_event(tmp_path / "data", helix_event(seed=1, event_id=event_id))
    return tmp_path


def command(script, workdir, *arguments):
    return [sys.executable, f"experiments/{script}.py", f"--workdir={workdir}", *arguments]


def pretrain_command(workdir, *arguments):
    ranges = ("--event_start=5,9", "--event_end=6,9", "--niter=2", "--seed=3")
    return command("pretrain_voxdyn", workdir, *ranges, *arguments)


def run(command):
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def test_files_are_those_of_the_library_and_are_judged(workdir):
    done = run(
        pretrain_command(
            workdir, "--ncell=16,40", "--node2node=eom,hyper", "--max_centroid_hits=200"
        )
    )
    assert done.returncode == 0, done.stderr
    events = [load_event(workdir / "data", event_id) for event_id in (5, 6, 9)]
    for ncell, node2node in ((16, "eom"), (16, "hyper"), (40, "eom"), (40, "hyper")):
        path = voxdyn_path(workdir / "models", node2node, ncell)
        assert str(path) in done.stdout
        assert f"{node2node}, {ncell} cells, min_count 1: graphs of 2 events" in done.stdout
        fitted = load_voxdyn(path, node2node, ncell)
        expected = fit_voxdyn(events, ncell, node2node, 2, seed=3, max_centroid_hits=200)
        np.testing.assert_array_equal(fitted.centroids, expected.centroids)
        np.testing.assert_array_equal(fitted.rows.counts, expected.rows.counts)
    for word in ("VD TPR", "VD FPR", "VD purity", "degree", "edges", "of all", "peak memory"):
        assert word in done.stdout, word
    assert "judged by events of the fit" in done.stdout
    assert not list((workdir / "models").glob("voxdyn.unfinished*"))


DYING = """
import os, runpy, signal, sys, threading
from pathlib import Path
from hypertrack_jax.events import store

how, models, script, *arguments = sys.argv[1:]
load, counted = store.load_event, []

def dying_load(*which):
    if any(Path(models).rglob("centroids_40*.npz")):
        counted.append(which)
    if len(counted) == 2:
        signal.pthread_kill(threading.main_thread().ident, int(how))
    return load(*which)

store.load_event = dying_load
sys.argv = [script, *arguments]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""
"""Gets a signal when it loads the second event to count."""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_is_taken_up_by_the_same_command(workdir, how):
    arguments = ("--ncell=40", "--max_centroid_hits=200", "--num_copies=2", "--rfactors=1")
    fresh = run(pretrain_command(workdir, *arguments))
    assert fresh.returncode == 0, fresh.stderr
    path = voxdyn_path(workdir / "models", "hyper", 40)
    whole = path.read_bytes()
    path.unlink()

    python, *script = pretrain_command(workdir, *arguments)
    stopped = run([python, "-c", DYING, str(int(how)), str(workdir / "models"), *script])
    assert stopped.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), stopped.stderr
    assert not path.exists()

    again = run(pretrain_command(workdir, *arguments))
    assert again.returncode == 0, again.stderr
    assert "sampling hits" not in again.stderr
    assert path.read_bytes() == whole


def test_graphs_alone_can_be_judged_by_another_topology(workdir):
    done = run(pretrain_command(workdir, "--ncell=40", "--node2node=eom"))
    assert done.returncode == 0, done.stderr
    done = run(
        command(
            *("inference", workdir, "--pre_only", "--node2node=eom", "--ncell=40"),
            *("--truth_node2node=hyper", "--min_count=2", "--event_start=5", "--event_end=6"),
        )
    )
    assert done.returncode == 0, done.stderr
    assert "fitted with eom, judged against hyper" in done.stdout
    assert "eom, 40 cells, min_count 2: graphs of 2 events" in done.stdout
    report = json.loads((workdir / "figs" / "graphs_eom_40" / "report.json").read_text())
    assert len(report["events"]) == 2
    assert 0 < report["summary"]["VD TPR"]["mean"] < 1
    assert report["settings"]["truth_node2node"] == "hyper"


def test_claims_of_those_estimators_that_have_been_fitted(workdir):
    pytest.importorskip("mplhep")
    done = run(pretrain_command(workdir, "--ncell=40", "--node2node=eom"))
    assert done.returncode == 0, done.stderr
    ranges = ("--event_start=5", "--event_end=6", "--eval_start=9", "--eval_end=9")
    settings = ("--ncell=40,64", "--node2node=eom,hyper", "--rfactors=0.5,1", "--milestones=1,2")
    done = run(command("voxdyn_claims", workdir, "--claims=pileup,events", *ranges, *settings))
    assert done.returncode == 0, done.stderr
    figures = workdir / "figs" / "voxdyn"
    assert {path.name for path in figures.iterdir()} == {
        *("pileup.json", "pileup.png", "events.json", "events.png")
    }
    points = json.loads((figures / "events.json").read_text())["points"]
    assert [point["num_events"] for point in points] == [1, 2]
    assert {(point["node2node"], point["num_cells"]) for point in points} == {("eom", 40)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ncell=100000",), "ncell=100000 is more than the"),
        (("--ncell=many",), "--ncell"),
        (("--event_end=7,9",), "event000000007.npz"),
        (("--node2node=hypre",), "hypre"),
        (("--num_copies=65",), "num_copies"),
        (("--min_count=0",), "--min_count=0.0: expected"),
        (("--rfactors=0.1,all",), "--rfactors=all: expected a number above 0"),
    ],
)
def test_one_sentence_and_no_file_for_bad_input(workdir, arguments, message):
    before = sorted(workdir.rglob("*"))
    done = run(pretrain_command(workdir, *arguments))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--read_tag is missing"),
        (("--pre_only", "--node2node=eom", "--ncell=40"), "voxdyn_eom_40.npz: no such file"),
    ],
)
def test_inference_without_what_it_needs(workdir, arguments, message):
    done = run(command("inference", workdir, *arguments, "--event_start=5", "--event_end=5"))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
