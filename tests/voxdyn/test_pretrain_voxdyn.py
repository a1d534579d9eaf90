"""The script that fits Voxel-Dynamics, run as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.voxdyn.model import fit_voxdyn, load_voxdyn, voxdyn_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("work")
    for event_id in (5, 6, 9):
        save_event(directory / "data", helix_event(seed=1, event_id=event_id))
    return directory


def pretrain(workdir, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "experiments/pretrain_voxdyn.py", f"--workdir={workdir}"),
            *("--event_start=5,9", "--event_end=6,9", "--niter=2", "--seed=3", *arguments),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_files_are_those_of_the_library(workdir):
    done = pretrain(workdir, "--ncell=16,40", "--node2node=eom", "--max_centroid_hits=200")
    assert done.returncode == 0, done.stderr
    events = [load_event(workdir / "data", event_id) for event_id in (5, 6, 9)]
    for ncell in (16, 40):
        path = voxdyn_path(workdir / "models", "eom", ncell)
        assert str(path) in done.stdout
        fitted = load_voxdyn(path, "eom", ncell)
        expected = fit_voxdyn(lambda: events, ncell, "eom", 2, seed=3, max_centroid_hits=200)
        np.testing.assert_array_equal(fitted.centroids, expected.centroids)
        np.testing.assert_array_equal(fitted.counts, expected.counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ncell=100000",), "--ncell=100000 is more than the"),
        (("--ncell=many",), "--ncell"),
        (("--event_end=7,9",), "event000000007.npz"),
        (("--node2node=hypre",), "hypre"),
    ],
)
def test_one_sentence_and_no_file_for_bad_input(workdir, arguments, message):
    before = sorted(workdir.rglob("*"))
    done = pretrain(workdir, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(workdir.rglob("*")) == before
