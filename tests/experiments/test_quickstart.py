"""The first command, as the README has it: tracks by the shipped model, with nothing fitted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_first_command_finds_tracks_and_trains_nothing(tmp_path):
    pytest.importorskip("acts", reason="needs the extra sim")
    pytest.importorskip("mplhep", reason="needs the extra plots")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "experiments" / "quickstart.py"),
            "--num_held_out=1",
            f"--workdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    commands = [
        line.split()[2:4] for line in done.stdout.splitlines() if line.startswith("$ python")
    ]
    scripts = [Path(script).stem for script, _ in commands]
    assert scripts == ["simulate", "inference"]
    report = json.loads((tmp_path / "figs" / "pu2" / "report.json").read_text())
    assert report["summary"]["efficiency"]["mean"] > 0.9
    page = (tmp_path / "figs" / "pu2" / "report.html").read_text()
    assert "<h1>Tracks by pu2</h1>" in page and page.count("data:image/png") == 5
    assert re.findall(r'href="(.*?)"', page) == ["event000008750.html"]
    assert (tmp_path / "figs" / "pu2" / "event000008750.html").is_file()
    assert not (tmp_path / "models").exists()


TRAIN = """
import subprocess, sys
sys.path.insert(0, sys.argv.pop(1))
import quickstart
quickstart.flags.FLAGS(sys.argv)
ended = subprocess.CompletedProcess([], 0)
subprocess.run = lambda *_, **__: ended
quickstart.train(1, 2)
"""


def test_training_keeps_to_the_edge_predictor(tmp_path):
    """Tracks are then made by cut, and phase 2 would take the time for nothing."""
    command = [sys.executable, "-c", TRAIN, str(ROOT / "experiments"), f"--workdir={tmp_path}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (trained,) = (line for line in told.splitlines() if "experiments/train.py" in line)
    assert "--phase=1" in trained.split()
