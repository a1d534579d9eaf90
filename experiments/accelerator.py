"""Measures a machine with an accelerator, in one command of eight minutes.

Runs stages one after another, each in a process with a time limit. Results are written at once to
accelerator.json and accelerator.md in --output. A stage that fails or hangs is reported, and the
next one begins. Needs full events in --workdir/data; the training takes all but the last.

python experiments/accelerator.py --workdir=carried --output=accelerator
python experiments/accelerator.py --workdir=quickstart --output=dry --dry_run --device=cpu
"""

import math
import os
import sys
from pathlib import Path

import command_line
from absl import flags
from benchmarks.accelerator_inputs import Setting, stored_ids
from benchmarks.accelerator_report import Report
from benchmarks.accelerator_run import run_in_time
from benchmarks.accelerator_stages import STAGES

from hypertrack_jax.errors import UserError

flags.adopt_module_key_flags(command_line)

OUTPUT = flags.DEFINE_string("output", None, "Directory of the results.", required=True)
MINUTES = flags.DEFINE_float("minutes", 8.0, "Minutes for all stages.", lower_bound=0.1)
ASKED = flags.DEFINE_list("stages", list(STAGES), f"Stages to run: some of {', '.join(STAGES)}.")
DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Small events and a small network: checks that the stages run, not how fast."
)
ALONE = flags.DEFINE_enum("stage", None, list(STAGES), "Run this stage in this process (internal).")
SECONDS = flags.DEFINE_float("seconds", 60.0, "Seconds for --stage (internal).", lower_bound=0)


def main() -> None:
    """Runs one stage here, or each in a process of its own."""
    report, data = Report(Path(OUTPUT.value).absolute()), command_line.workdir("data")
    stored_ids(data)  # Fails at once if there are no events.
    if ALONE.value:
        report.begin(ALONE.value)
        STAGES[ALONE.value].run(Setting(data, report, SECONDS.value, DRY_RUN.value))
        sys.exit(1 if report.failed else 0)
    unknown = [name for name in ASKED.value if name not in STAGES]
    if unknown:
        raise UserError(f"--stages={unknown[0]}: expected some of {', '.join(STAGES)}.")
    # A dry run tests no speed, so a slow processor may take its time.
    limits = {name: math.inf if DRY_RUN.value else STAGES[name].limit for name in ASKED.value}
    is_whole = run_in_time(command(), limits, 60 * MINUTES.value, report)
    print(report.markdown_path.read_text())
    sys.exit(0 if is_whole else 1)


def leave_memory() -> None:
    """Has jax take no memory of a card beforehand where other processes of this script need it.

    With an explicit --device jax opens the card in every process.
    """
    is_measured = ALONE.value not in (None, "tests")
    # Also "true", since stages inherit the environment.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if is_measured else "false"


def command() -> list[str]:
    """This script with the same flags, for one stage."""
    shared = [command_line.WORKDIR, command_line.DEVICE, command_line.CACHE, OUTPUT, DRY_RUN]
    given = [f"--{flag.name}={flag.value}" for flag in shared if flag.value is not None]
    return [sys.executable, str(Path(__file__).absolute()), *given]


if __name__ == "__main__":
    command_line.run(main, leave_memory)
