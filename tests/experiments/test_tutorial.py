"""The tutorial: the commands on its page, run one after the other, with smaller numbers."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "experiments" / "results" / "tutorial.md").read_text()
SMALLER = {
    "number, 40, np": "number, 8, np",
    "train 1 200": "train 1 4",
    "new 901 920": "new 901 902",
    "ncell=1024": "ncell=64",
    "min_count=4": "min_count=1",
    "--event_end=180": "--event_end=3",
    "--eval_start=181 --eval_end=184": "--eval_start=4 --eval_end=4",
    "--num_copies=8": "--num_copies=1",
    "--num_steps=300": "--num_steps=2",
}


def blocks(language):
    """The blocks of the page in a language, with smaller numbers."""
    text = PAGE
    for number, smaller in SMALLER.items():
        assert number in text, f"{number} is not on the page"
        text = text.replace(number, smaller)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(line, directory):
    """Runs a line of the shell as a reader does, by the Python of this test."""
    words = shlex.split(line.replace("hypertrack_jax_checkout", str(ROOT)))
    program = {"python": [], "hypertrack": ["-m", "hypertrack_jax"]}[words[0]]
    return subprocess.run(
        [sys.executable, *program, *words[1:]],
        cwd=directory,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def test_the_five_steps_lead_from_nothing_to_tracks_and_scores(tmp_path):
    pytest.importorskip("plotly", reason="needs the extra plots")
    for code in blocks("python"):
        name = re.match(r"# (\S+\.py)\n", code)[1]
        (tmp_path / name).write_text(code)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(re.findall(r"^## [1-5]\. ", PAGE, re.MULTILINE)) == 5 and len(lines) == 7
    for line in lines:
        done = run(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert re.search(r"^\| ours: double majority, 4 hits ", done.stdout, re.MULTILINE)
    found = sorted(path.name for path in (tmp_path / "tracks").iterdir())
    assert found == [
        "event000000901-submission.csv",
        "event000000901.html",
        "event000000901.json",
        "event000000902-submission.csv",
    ]
