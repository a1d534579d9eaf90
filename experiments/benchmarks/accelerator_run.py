"""Host side: runs each stage in a process with a time limit; a failure does not stop the next."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

from benchmarks.accelerator_report import Report

LEAST_SECONDS = 5.0
"""A stage with less time is not begun."""
GRACE_SECONDS = 5.0
"""From SIGTERM, which asks a stage to end, to SIGKILL."""


def run_in_time(
    command: Sequence[str], limits: dict[str, float], seconds: float, report: Report
) -> bool:
    """Runs `command --stage=NAME --seconds=...` for each stage, in the order of `limits`.

    What a stage prints goes to `accelerator.log` beside the report.

    Args:
      command: what runs a stage.
      limits: seconds that each stage may take; infinite for what is left.
      seconds: time for all stages.
      report: where the stages write what they find.

    Returns:
      Whether every stage came to its end.
    """
    end, is_whole = time.monotonic() + seconds - GRACE_SECONDS, True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as programs:
        # Stages share compiled programs. Those of an earlier run would hide the compilation time.
        environment = {"JAX_COMPILATION_CACHE_DIR": programs, **os.environ}
        for stage, limit in limits.items():
            report.begin(stage)
            time_left, started = min(limit, end - time.monotonic()), time.monotonic()
            state = "not begun: no time was left"
            if time_left >= LEAST_SECONDS:
                state = _run([*command, f"--stage={stage}"], time_left, environment, report)
                state += f", after {time.monotonic() - started:.0f} s"
            report.end(stage, state)
            print(f"{stage}: {state}", flush=True)
            is_whole &= state.startswith("done")
    return is_whole


def _run(
    command: Sequence[str], seconds: float, environment: dict[str, str], report: Report
) -> str:
    """Runs a stage, and says how it ended."""
    with (report.directory / "accelerator.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, f"--seconds={seconds:.1f}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # One session with its children, so that all can be killed at once.
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return "ended for want of time"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if status == 0 else f"failed with status {status}, see accelerator.log"


def _end(process: subprocess.Popen) -> None:
    """Asks a process and its children to end, and ends them if they do not."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_SECONDS)
