"""A small work directory for all parts: toy events, their TrackML files, a model of few steps."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.trackml import write_event_csv

ROOT = Path(__file__).parents[3]
EVENTS = (1, 2, 3, 4)
RANGE = ("--event_start=1", "--event_end=4")
TUNE = """
from hypertrack_jax.tunes.tune import ClusterTune, NetworkTune, OptimizerTune, Tune, VoxdynTune

TUNE = Tune(
    name="tiny",
    voxdyn=VoxdynTune(ncell=64),
    network=NetworkTune("cylindrical", "helix", 2, 8, 9, (6,)),
    cluster=ClusterTune("cut"),
    optimizer=OptimizerTune(learning_rate=5e-3),
)
"""


def script(workdir: Path, name: str, *arguments: str) -> list[str]:
    """The command of one of our scripts."""
    path = str(ROOT / "experiments" / f"{name}.py")
    return [sys.executable, path, f"--workdir={workdir}", *arguments]


def train(workdir: Path, tag: str, num_steps: int) -> list[str]:
    """The command of a training of few steps, with a checkpoint every 0.2 seconds."""
    where = (f"--param={workdir / 'tiny.py'}", f"--save_tag={tag}", f"--num_steps={num_steps}")
    how = ("--rfactor_start=1", "--rfactor_end=1", "--save_period=0.003", "--device=cpu")
    return script(workdir, "train", *where, *how, *RANGE)


def run(command: list[str], **how) -> subprocess.CompletedProcess:
    """Runs a command to its end; its output is kept."""
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, **how)


def must(command: list[str]) -> None:
    """Runs a command that has to work."""
    done = run(command)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")


def prepare(workdir: Path) -> None:
    """Makes the directory, unless it is complete."""
    if (workdir / "is_whole").exists():
        return
    shutil.rmtree(workdir, ignore_errors=True)
    # The tests are in the repository; the wheel has neither them nor this script.
    sys.path.insert(0, str(ROOT / "tests"))
    helix_event = importlib.import_module("toy").helix_event
    for event_id in EVENTS:
        event = helix_event(event_id, 15, event_id=event_id)
        save_event(workdir / "data", event)
        write_event_csv(workdir / "csv", event)
    (workdir / "tiny.py").write_text(TUNE)
    must(script(workdir, "pretrain_voxdyn", "--ncell=64", *RANGE))
    must(train(workdir, "tiny", 6))
    weights = workdir / "models" / "weights.npz"
    must(script(workdir, "ship_weights", "--read_tag=tiny", f"--output={weights}"))
    artefact = workdir / "tiny.jaxexport"
    must(script(workdir, "export", "--read_tag=tiny", "--num_hits=300", f"--output={artefact}"))
    (workdir / "is_whole").write_text(os.uname().nodename)


def copied(workdir: Path, place: Path, *names: str) -> Path:
    """A new work directory, `place`, with copies of the files and folders named."""
    shutil.rmtree(place, ignore_errors=True)
    for name in names:
        source = workdir / name
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, place / name)
    return place


def sentence_of(done: subprocess.CompletedProcess) -> str:
    """How a script ended: `right`, `refused` in one sentence, or what went wrong."""
    if done.returncode == 0:
        return "right"
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    if "Traceback" in done.stderr or done.returncode not in (1, 2):
        return f"wrong: status {done.returncode}: {' '.join(last)[:300]}"
    return "refused" if last and len(last[0]) < 1000 else "wrong: no sentence"
