"""Two processes that train together, against a single one."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.training.loop import AGREE_INTERVAL, train
from hypertrack_jax.training.run import TrainingRun

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
BATCH_SIZE = 3  # For four devices, two in each process: one of them repeats an event.
NUM_STEPS = AGREE_INTERVAL + 2
PATIENCE = 300  # seconds, for a machine that has much else to do


def trained_together(workdir: Path) -> list[str]:
    """What two processes say that meet at a free port and train until `NUM_STEPS`."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    command = [
        *(sys.executable, str(TRAIN), "--device=cpu", f"--workdir={workdir}", "--save_tag=both"),
        *(f"--param={workdir / 'tiny.py'}", "--optimizer=SGD", "--phase=1", "--seed=3"),
        *("--event_start=1", "--event_end=4", "--rfactor_start=0.75", "--rfactor_end=1"),
        *("--validate=1", "--validation_start=1", "--validation_end=3"),
        *(f"--num_steps={NUM_STEPS}", f"--batch_size={BATCH_SIZE}", "--save_period=0"),
        *(f"--coordinator_address=localhost:{port}", "--num_processes=2"),
    ]
    pipe, both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}, []
    try:
        both += [subprocess.Popen([*command, f"--process_id={i}"], **pipe) for i in range(2)]
        said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    return said


@pytest.mark.usefixtures("optax_promotion")
def test_two_processes_train_as_one_does(workdir, small_tune, voxdyn, source, caplog):
    both = workdir / "models" / "both"
    said = trained_together(workdir)
    # The bar and the log of the training are those of process 0.
    for sign in ("compiling for", "step/s", "validation AUC"):
        assert sign in said[0] and sign not in said[1]
    assert len(list((workdir / "runs" / "both").iterdir())) == 2

    caplog.set_level("INFO")
    tune = replace(small_tune, optimizer=replace(small_tune.optimizer, optimizer="SGD"))
    places = workdir / "models" / "one", workdir / "runs" / "one"
    validation = source._replace(event_ids=[1, 2, 3])
    run = TrainingRun(source, *places, NUM_STEPS, BATCH_SIZE, validation=validation, phase=1)
    one = train(run, tune, voxdyn)
    assert area(said[0]) == pytest.approx(area(caplog.text), abs=2e-3)
    with Checkpoints(both) as checkpoints:
        # They save when both agree that it is time to, and at the end.
        assert checkpoints.steps() == [AGREE_INTERVAL, NUM_STEPS]
        assert_close(checkpoints.restore(NUM_STEPS, one), one)

    # A single process goes on with what two have saved.
    run = replace(run, num_steps=NUM_STEPS + 1, validation=None)
    others = replace(run, checkpoint_directory=both)
    assert_close(train(others, tune, voxdyn), train(run, tune, voxdyn))


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), first, second)


def area(told: str) -> float:
    (number,) = re.findall(r"validation AUC ([\d.]+)", told)
    return float(number)
