"""Kills scripts, damages their files, limits disk and memory, and counts what goes wrong.

python experiments/fault_campaign.py --workdir=faults
python experiments/fault_campaign.py --workdir=faults --parts=csv --tries=100

A run goes on where the last one stopped, with --tries further tries of each part. Tries run in a
process of their own, so that a crash is counted and the next try begins. The counts are in
faults.json and the table in faults.md, both in --workdir.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import command_line
from absl import flags
from studies.faults import formats, kills, limits, mutations, sharing
from studies.faults.table import table
from studies.faults.toy_work import prepare

from hypertrack_jax.errors import UserError

flags.adopt_module_key_flags(command_line)

PARTS: dict[str, tuple[int, Callable[[Path, int], str]]] = {
    **{f"kill {name}": (100, partial(kills.killed, name)) for name in kills.COMMANDS},
    "csv": (10_000, mutations.mutated_csv),
    **{f"damaged {name}": (400, partial(mutations.mutated_file, name)) for name in mutations.FILES},
    **{f"damaged {name}": (500, partial(formats.damaged_format, name)) for name in formats.FORMATS},
    "full disk": (48, limits.full_disk),
    "little memory": (48, limits.little_memory),
    "no home": (12, limits.no_home),
    "place taken": (4, limits.place_taken),
    "two trainings": (3, sharing.two_trainings),
    "threads": (1, sharing.threads),
    "other order": (100, sharing.other_order),
}
"""By part: tries of a whole campaign, and a function that makes one and returns its outcome."""

ASKED = flags.DEFINE_list("parts", list(PARTS), "Parts to run.")
TRIES = flags.DEFINE_integer(
    "tries", None, "Further tries of each part; default: up to its full number."
)
WORKER = flags.DEFINE_integer(
    "worker", None, "Set by this script for its own processes: number of the first try."
)


def main() -> None:
    """Runs the parts, and writes the table after each."""
    unknown = [part for part in ASKED.value if part not in PARTS]
    if unknown:
        raise UserError(f"--parts={unknown[0]}: choose some of {', '.join(PARTS)}.")
    workdir = command_line.workdir()
    if WORKER.value is not None:
        return work(workdir, ASKED.value[0], WORKER.value, TRIES.value or 1)
    prepare(workdir)
    state = workdir / "faults.json"
    counts = json.loads(state.read_text()) if state.exists() else {}
    for part in ASKED.value:
        found = counts.setdefault(part, {})
        done = sum(found.values())
        last = PARTS[part][0] if TRIES.value is None else done + TRIES.value
        for outcome in outcomes(workdir, part, done, last):
            found[outcome] = found.get(outcome, 0) + 1
            state.write_text(json.dumps(counts, indent=1))
        (workdir / "faults.md").write_text(table(counts))
    print(table(counts))


def work(workdir: Path, part: str, first: int, tries: int) -> None:
    """Makes tries one after another, and prints the outcome of each."""
    for number in range(first, first + tries):
        print(f"outcome {PARTS[part][1](workdir, number)!r}", flush=True)


def outcomes(workdir: Path, part: str, done: int, last: int) -> Iterator[str]:
    """Outcomes of tries. A crash is one, and a new process makes the tries after it."""
    while done < last:
        flag = (f"--parts={part}", f"--worker={done}", f"--tries={last - done}")
        command = [sys.executable, __file__, f"--workdir={workdir}", *flag, "--device=cpu"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("outcome "):
                done += 1
                yield line.removeprefix("outcome ").strip().strip("'\"")
        if process.wait():
            done += 1
            yield f"wrong: the process died with status {process.returncode}"


if __name__ == "__main__":
    command_line.run(main)
