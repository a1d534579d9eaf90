"""The script that simulates events, run as a user would."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import assert_same_event

from hypertrack_jax.events.simulation import simulate_event
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.trackml import read_event

ROOT = Path(__file__).parents[2]
needs_acts = pytest.mark.skipif(
    importlib.util.find_spec("acts") is None,
    reason="needs the extra sim: pip install 'hypertrack-jax[sim]'",
)


def run_script(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "experiments/simulate.py", f"--workdir={tmp_path}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_acts
def test_events_do_not_depend_on_the_number_of_processes(tmp_path):
    arguments = ("--num_events=3", "--event_start=1000", "--pileup=2", "--seed=1")
    for num_processes in (1, 2):
        done = run_script(
            tmp_path / str(num_processes), *arguments, f"--num_processes={num_processes}"
        )
        assert done.returncode == 0, done.stderr
        # Nothing but the script's own line, and the bar on the other stream.
        assert done.stdout == f"3 events written to {tmp_path / str(num_processes) / 'data'}\n"
        assert "3/3" in done.stderr
    one, two = (tmp_path / number / "data" for number in "12")
    assert sorted(path.name for path in one.iterdir()) == [
        f"event00000{event_id}.npz" for event_id in (1000, 1001, 1002)
    ]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    assert_same_event(load_event(one, 1001), simulate_event(1001, 2, 1).event)


@needs_acts
def test_csv_is_read_back_unchanged(tmp_path):
    done = run_script(tmp_path, "--num_events=1", "--pileup=2", "--format=csv", "--seed=5")
    assert done.returncode == 0, done.stderr
    kinds = ("hits", "cells", "truth", "particles")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "detectors.csv",
        *(f"event000001000-{kind}.csv" for kind in kinds),
    }
    simulated = simulate_event(1000, 2, 5)
    assert_same_event(read_event(tmp_path / "data", 1000), simulated.event)
    header, *rows = (tmp_path / "data" / "event000001000-truth.csv").read_text().splitlines()
    columns = dict(zip(header.split(","), rows[0].split(","), strict=True))
    assert float(columns["tx"]) == pytest.approx(simulated.true_position[0, 0])
    assert float(columns["tpz"]) == pytest.approx(simulated.true_momentum[0, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pileup=-2", "--num_processes=1"), "--pileup=-2.0: expected a number above 0"),
    ],
)
def test_bad_value(tmp_path, arguments, message):
    done = run_script(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("argument", "expected"), [("--format=cvs", "npz|csv"), ("--seed=-1", "non-negative integer")]
)
def test_a_value_that_no_flag_takes(tmp_path, argument, expected):
    done = run_script(tmp_path, argument)
    assert done.returncode != 0
    assert argument in done.stderr and expected in done.stderr
    assert "Traceback" not in done.stderr


@needs_acts
def test_work_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file where the directory should be")
    done = run_script(tmp_path, "--num_events=2", "--pileup=1")
    assert done.returncode == 2
    assert "error: " in done.stderr and "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
