"""How scripts end: by one sentence where the user made a mistake, by a traceback where we did."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments"
SCRIPT = """
import sys
sys.path.insert(0, {scripts!r})
import command_line
{body}
command_line.run(main)
"""


def run(body: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script with this `main`."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(scripts=str(SCRIPTS), body=body), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )


LATE_THREAD = """
import concurrent.futures, threading
from concurrent.futures import thread
from hypertrack_jax.errors import UserError

def tidy():
    wait = threading.Event()
    for _ in range(100):
        if thread._shutdown:
            break
        wait.wait(0.005)
    concurrent.futures.ThreadPoolExecutor().submit(print, "tidied").result()

def main():
    threading.Thread(target=tidy).start()
    raise UserError("a mistake.")
"""


def test_a_thread_that_still_works_ends_before_python_does():
    done = run(LATE_THREAD)
    assert (done.returncode, done.stdout, done.stderr) == (2, "tidied\n", "error: a mistake.\n")


@pytest.mark.parametrize(
    "error",
    ["UserError('a mistake.')", "MissingPackageError('a mistake.')", "OSError('a mistake.')"],
)
def test_a_users_mistake_is_one_sentence(error):
    body = f"from hypertrack_jax.errors import *\ndef main(): raise {error}"
    done = run(body)
    assert (done.returncode, done.stderr) == (2, "error: a mistake.\n")


def test_memory_that_runs_out_is_one_sentence():
    done = run("import numpy\ndef main(): numpy.zeros(2**60, numpy.uint8)")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the memory ran out in this run; choose fewer or smaller")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", ["ImportError('ours')", "KeyError('ours')", "ValueError('ours')"])
def test_a_defect_keeps_its_traceback(error):
    done = run(f"def main(): raise {error}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ours" in done.stderr


CHECKPOINT = """
import resource
import jax.numpy as jnp
from pathlib import Path
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.tunes.tune import Tune

def main():
    state = {{str(number): jnp.zeros(number) for number in range(1, 200)}}
    directory = Path({directory!r})
    with Checkpoints(directory, is_writer=True) as checkpoints:
        {before}
        checkpoints.save(1, state, Tune("full"), auc=0.5)
        for path in (directory / "1" / "state").rglob("d/*"):
            path.write_bytes(path.read_bytes()[:-40])
        checkpoints.restore(1, state)
"""


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            "resource.setrlimit(resource.RLIMIT_FSIZE, (256, -1))",
            "1 cannot be saved (File too large); make room",
        ),
        ("pass", "step 1 cannot be read, its files are damaged"),
    ],
)
def test_a_checkpoint_that_fails_is_one_sentence_and_the_end(tmp_path, before, told):
    """Orbax leaves threads that wait for work, others that fail, and a loop that is closed."""
    done = run(CHECKPOINT.format(directory=str(tmp_path / "tag"), before=before))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and told in done.stderr, done.stderr
