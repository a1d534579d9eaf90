"""A training that is killed and started again ends with the weights of one that was left alone."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.training.step import init_state

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
PHASE_2, NUM_STEPS = 6, 11
"""Steps at which the second phase begins, and at which the training ends."""
SHORT = f"""
import os, runpy, signal, sys
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.training import loop, step as training_step

training_step.AUC_MEMORY = training_step.PHASE_INTERVAL = loop.PHASE_INTERVAL = {PHASE_2}
step, place, script, *arguments = sys.argv[1:]
save = Checkpoints.save
loop._Trainer.wishes = lambda self, num_done, has_signal: [False, int(step) - num_done in (0, 3)]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dying_save(*inputs):
    if inputs[1] >= int(step):
        if place == "before a save":
            die()
        os.rename = die
    save(*inputs)

Checkpoints.save = dying_save
sys.argv = [script, *arguments]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""
"""A training with a short first phase. It saves three steps before one, and at it. There it kills
itself before it saves, or when what it has written is to get its name."""
KILLED = ((4, "in a save"), (PHASE_2 - 1, "before a save"), (PHASE_2 + 3, "in a save"))
"""Steps at which the process is killed, in both phases and around their border, and where."""


class Training:
    """The real command on toy events, in a process of its own."""

    def __init__(self, workdir: Path, tag: str):
        self.directory = workdir / "models" / tag
        self._log = workdir / f"{tag}.log"
        # Small programs, too, are compiled once for all the processes.
        self._environment = os.environ | {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._command = [
            *(str(TRAIN), "--device=cpu", f"--workdir={workdir}"),
            *(f"--param={workdir / 'tiny.py'}", f"--save_tag={tag}", f"--num_steps={NUM_STEPS}"),
            *("--event_start=1", "--event_end=4", "--rfactor_start=0.9", "--rfactor_end=1"),
            *("--batch_size=2", "--seed=3", "--auc_threshold=0.1"),
        ]

    def run(self, step: int, place: str) -> int:
        """The exit status of the command that dies at a step."""
        with open(self._log, "a") as log:
            command = [sys.executable, "-c", SHORT, str(step), place, *self._command]
            both = {"stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.run(command, env=self._environment, timeout=1800, **both).returncode

    def finish(self) -> None:
        assert self.run(2 * NUM_STEPS, "nowhere") == 0, self._log.read_text()[-2000:]

    def die(self, step: int, place: str) -> None:
        status = self.run(step, place)
        assert status == -signal.SIGKILL, self._log.read_text()[-2000:]


def test_a_killed_training_ends_with_the_same_weights(workdir, small_tune):
    whole, killed = Training(workdir, "whole"), Training(workdir, "killed")
    whole.finish()
    for step, place in KILLED:
        killed.die(step, place)
    killed.finish()
    optimizer = replace(small_tune.optimizer, auc_threshold=0.1)
    states = [final_state(one, replace(small_tune, optimizer=optimizer)) for one in (whole, killed)]
    assert (states[0].phase, states[0].phase_start) == (2, PHASE_2)
    jax.tree.map(np.testing.assert_array_equal, *states)


def final_state(training, tune):
    with Checkpoints(training.directory) as checkpoints:
        assert checkpoints.describe()[:2] == (NUM_STEPS, tune)
        return checkpoints.restore(
            NUM_STEPS, jax.eval_shape(partial(init_state, tune), jax.random.key(0))
        )
