"""Scripts that are killed at any moment and started again: nothing is lost, and the bits agree."""

import os
import random
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

import jax
import numpy as np

from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from studies.faults.toy_work import RANGE, copied, must, run, script, train

NUM_STEPS = 140
COMMANDS = {
    "simulate": lambda w: script(
        w, "simulate", "--num_events=4", "--pileup=1", "--event_start=1", "--num_processes=2"
    ),
    "process_data": lambda w: script(w, "process_data", f"--input={w / 'csv'}"),
    "pretrain_voxdyn": lambda w: script(w, "pretrain_voxdyn", "--ncell=64,48", *RANGE),
    "train": lambda w: [*train(w, "killed", NUM_STEPS), "--auc_threshold=0.1"],
    "inference": lambda w: script(
        w, "inference", "--read_tag=tiny", f"--submission_dir={w / 'submissions'}", *RANGE
    ),
}
INPUTS = {
    "simulate": (),
    "process_data": ("csv",),
    "pretrain_voxdyn": ("data",),
    "train": ("data", "models", "tiny.py"),
    "inference": ("data", "models"),
}
OUTPUTS = {
    "simulate": "data/*",
    "process_data": "data/*",
    "pretrain_voxdyn": "models/*",
    "inference": "submissions/*",
}


def killed(name: str, workdir: Path, number: int) -> str:
    """Kills all processes of a script at a random moment, and runs it again to its end."""
    expected, seconds = whole(name, workdir)
    place = copied(workdir, workdir / f"kill_{name}", *INPUTS[name])
    command = COMMANDS[name](place)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(random.Random(f"{name} {number}").uniform(0, seconds))
    is_over = process.poll() is not None
    os.killpg(process.pid, signal.SIGKILL) if not is_over else None
    process.wait()
    done = run(command)
    if done.returncode:
        return f"wrong: status {done.returncode}: {done.stderr[-300:]}"
    found = outputs(name, place)
    if found.keys() != expected.keys():
        return f"wrong: {sorted(found.keys() ^ expected.keys())[:3]} are left over or missing"
    different = [key for key in expected if found[key] != expected[key]]
    if different:
        return f"wrong: {different[0]} has other bits"
    return "right, though it was over before" if is_over else "right"


@cache
def whole(name: str, workdir: Path) -> tuple[dict[str, bytes], float]:
    """What an undisturbed run leaves, and its seconds."""
    place, started = workdir / f"whole_{name}", 0.0
    for _ in range(2):  # The first compiles, and the others find its programs.
        copied(workdir, place, *INPUTS[name])
        started = time.monotonic()
        must(COMMANDS[name](place))
    return outputs(name, place), time.monotonic() - started


def outputs(name: str, place: Path) -> dict[str, bytes]:
    """The files that a script left; of a training, the weights."""
    if name == "train":
        model = Reconstructor.load("killed", place / "models")
        leaves = jax.tree_util.tree_leaves_with_path((model.params, model.batch_stats))
        return {str(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    return {str(p.relative_to(place)): p.read_bytes() for p in place.glob(OUTPUTS[name])}
