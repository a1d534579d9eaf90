"""The check of an accelerator: all its stages in small, and what becomes of those that fail."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import toy
from benchmarks import accelerator_run
from benchmarks.accelerator_report import Report
from benchmarks.accelerator_run import run_in_time
from benchmarks.accelerator_stages import STAGES, recommendation

from hypertrack_jax.events.store import save_event
from hypertrack_jax.reconstruction.reconstructor import Reconstructor

SCRIPT = Path(__file__).parents[2] / "experiments" / "accelerator.py"


def accelerator(workdir: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), f"--workdir={workdir}", *arguments, "--device=cpu"]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


def test_a_dry_run_takes_all_stages(tmp_path):
    for number in (1, 2):
        save_event(tmp_path / "data", toy.helix_event(number, 40, event_id=number))
    output = tmp_path / "found"
    done = accelerator(tmp_path, f"--output={output}", "--dry_run", "--minutes=20")
    log = (output / "accelerator.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    found = json.loads((output / "accelerator.json").read_text())
    assert list(found) == list(STAGES)
    assert all(stage["state"].startswith("done") and stage["rows"] for stage in found.values())
    assert found["tests"]["rows"][0]["outcome"] == "passed"
    (row,) = found["reconstruct"]["rows"]
    assert row["compiling, s"] > 0 and row["peak so far, GB"] > 0.05
    parts = [row[f"{stage}, ms"] for stage in ("VD", "filter", "GNN", "CC", "cluster", "total")]
    assert 0 < max(parts[:-1]) < parts[-1] < 2 * sum(parts[:-1])
    steps = found["train_step"]["rows"]
    assert {(one["phase"], one["dtype"]) for one in steps} == {(2, "float32"), (1, "bfloat16")}
    (line,) = found["sizes"]["notes"]
    assert "located_hits" in line and "hypertrack_jax/device.py" in line
    # What was trained is a model, and can be trained on.
    assert len(Reconstructor.load(output / "trained.npz").voxdyn.index.centroids) == 65536
    with tarfile.open(output / "checkpoints.tar.gz") as archive:
        assert any("models/2/" in name for name in archive.getnames())
    tables = (output / "accelerator.md").read_text()
    assert tables in done.stdout and "| copy, float32" in tables and line in tables


STAGE = """
import signal, sys
from pathlib import Path
from benchmarks.accelerator_report import Report
stage = sys.argv[2].removeprefix("--stage=")
if stage == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
report = Report(Path(sys.argv[1]))
report.add(stage, value=0.125)
print("told by", stage)
assert stage != "fails", "a defect"
"""


def test_a_stage_that_fails_or_hangs_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator_run, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(accelerator_run, "GRACE_SECONDS", 0.5)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])]))
    report = Report(tmp_path)
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    limits = {"fails": np.inf, "hangs": 0.2, "works": np.inf}
    assert not run_in_time(command, limits, 600.0, report)
    found = report.read()
    states = [found[stage]["state"] for stage in limits]
    assert states[0].startswith("failed with status 1, see accelerator.log")
    assert states[1].startswith("ended for want of time") and states[2].startswith("done")
    # What a stage found before it failed is there.
    assert found["fails"]["rows"] == found["works"]["rows"] == [{"value": 0.125}]
    log = (tmp_path / "accelerator.log").read_text()
    assert "told by fails" in log and "a defect" in log and "told by works" in log
    assert capsys.readouterr().out.splitlines() == [
        f"{stage}: {state}" for stage, state in zip(limits, states, strict=True)
    ]
    monkeypatch.setattr(accelerator_run, "LEAST_SECONDS", 5.0)
    assert not run_in_time(command, {"works": np.inf}, 1.0, report)
    assert report.read()["works"] == {
        "rows": [],
        "notes": [],
        "state": "not begun: no time was left",
    }


def test_work_that_fails_is_noted_and_the_next_goes_on(tmp_path):
    report = Report(tmp_path)
    report.begin("sizes")
    for value in (1, 0, 4):
        with report.going_on("sizes", f"1 / {value}"):
            report.add("sizes", value=value, result=1 / value)
    found = report.read()["sizes"]
    assert [row["value"] for row in found["rows"]] == [1, 4]
    assert found["notes"] == ["1 / 0 failed: ZeroDivisionError: division by zero"]
    assert report.failed == ["1 / 0"]


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ({512: 0.1, 64: 0.05}, "Set filter_hits to 64 in `CPU` .*: 50 ms instead of 100"),
        ({512: 0.1, 64: 0.099}, "Leave filter_hits at 512 in `CPU`"),
    ],
)
def test_another_size_is_recommended_where_it_is_clearly_faster(seconds, line):
    assert re.search(line, recommendation("CPU", "filter_hits", 512, seconds))


def test_mistakes_get_one_sentence(tmp_path):
    done = accelerator(tmp_path, f"--output={tmp_path}")
    assert done.returncode == 2 and "no events here; simulate.py makes them" in done.stderr
    save_event(tmp_path / "data", toy.helix_event(1, 4))
    done = accelerator(tmp_path, f"--output={tmp_path}", "--stages=tests,sizs")
    assert done.returncode == 2 and "--stages=sizs: expected some of device, tests" in done.stderr
