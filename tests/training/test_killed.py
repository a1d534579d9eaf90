"""A training that is killed and started again ends with the weights of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.training.step import AUC_MEMORY, init_state

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
NUM_STEPS = AUC_MEMORY + 60
KILLED_AFTER = (range(5, 60), range(AUC_MEMORY + 1, AUC_MEMORY + 20))
"""Saved steps behind which the process is killed: in phase 1, and in phase 2."""


class Training:
    """The real command on toy events, in a process of its own."""

    def __init__(self, workdir: Path, tag: str):
        self.directory = workdir / "models" / tag
        self._log = workdir / f"{tag}.log"
        # Compiled once for all the processes.
        self._environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._command = [
            *(sys.executable, str(TRAIN), "--device=cpu", f"--workdir={workdir}"),
            *(f"--param={workdir / 'tiny.py'}", f"--save_tag={tag}", f"--num_steps={NUM_STEPS}"),
            *("--event_start=1", "--event_end=4", "--rfactor_start=0.9", "--rfactor_end=1"),
            *("--batch_size=2", "--seed=3", "--auc_threshold=0.1", "--save_period=0.003"),
        ]

    def start(self) -> subprocess.Popen:
        with open(self._log, "a") as log:
            return subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self) -> None:
        assert self.start().wait(timeout=1800) == 0, self._log.read_text()[-2000:]

    def kill_after(self, saved_step: int) -> None:
        """Kills it at some moment after this step was saved."""
        process = self.start()
        while max(self._saved_steps(), default=0) < saved_step:
            assert process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        assert process.poll() is None, "it was to be killed before it ends"
        process.kill()
        assert process.wait() == -signal.SIGKILL

    def _saved_steps(self) -> list[int]:
        names = [path.name for path in self.directory.glob("*")]
        return [int(name) for name in names if name.isdigit()]


def test_a_killed_training_ends_with_the_same_weights(workdir, small_tune):
    whole, killed = Training(workdir, "whole"), Training(workdir, "killed")
    whole.finish()
    for steps in KILLED_AFTER:
        killed.kill_after(random.choice(steps))
    killed.finish()
    optimizer = replace(small_tune.optimizer, auc_threshold=0.1)
    states = [final_state(one, replace(small_tune, optimizer=optimizer)) for one in (whole, killed)]
    assert (states[0].phase, states[0].phase_start) == (2, AUC_MEMORY)
    jax.tree.map(np.testing.assert_array_equal, *states)


def final_state(training, tune):
    with Checkpoints(training.directory) as checkpoints:
        assert checkpoints.describe()[:2] == (NUM_STEPS, tune)
        return checkpoints.restore(
            NUM_STEPS, jax.eval_shape(partial(init_state, tune), jax.random.key(0))
        )
