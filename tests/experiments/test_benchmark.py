"""benchmark.py as a user runs it: what it writes, and what users get wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from hypertrack_jax.events.store import save_event
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmark.py"


def benchmark(workdir: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), f"--workdir={workdir}", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )


def test_tables_are_printed_and_written(tmp_path):
    events = [toy.helix_event(1, 20, event_id=number) for number in range(3)]
    save_event(tmp_path / "data", events[0])
    voxdyn = fit_voxdyn(events, 64, "hyper", num_iterations=2)
    save_voxdyn(voxdyn_path(tmp_path / "models", "hyper", 64), voxdyn)
    done = benchmark(
        tmp_path,
        "--suite=graph",
        "--event=0",
        "--ncell=64",
        "--min_count=1",
        "--rfactor=0.5",
        "--noise_ratio=none",
        "--runs=2",
        "--peers=",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "figs" / "benchmark.json").read_text())
    (timing,) = written["timings"]
    assert timing["suite"] == "graph / ours" and timing["runs"] == 2
    assert timing["hits"] < np.count_nonzero(events[0].hit_particle >= 0)
    tables = (tmp_path / "figs" / "benchmark.md").read_text()
    assert tables.splitlines()[0] in done.stdout and written["date"] in tables


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=scaling"], r"--suite=scaling scores tracks.*--read_tag"),
        (
            ["--suite=gnn", "--rfactor=0.1,1", "--event=0"],
            r"--rfactor=0\.1,1: --suite=gnn takes one",
        ),
    ],
)
def test_mistake_gets_one_sentence(tmp_path, arguments, message):
    save_event(tmp_path / "data", toy.helix_event(1, 5, event_id=0))
    done = benchmark(tmp_path, *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr) and "Traceback" not in done.stderr
