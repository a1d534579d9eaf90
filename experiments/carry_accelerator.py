"""Gathers what accelerator.py needs on a machine without a package index, and tells how to run it.

The target machine has Linux x86-64, and jax for its card with what jax needs. The folder has our
code, one model, wheels of the other dependencies, and some events of --workdir/data. accelerator.py
trains on all of them but the last.

python experiments/carry_accelerator.py --workdir=work --event_start=1000,8752 --event_end=1003,8752
"""

from pathlib import Path

import command_line
from absl import flags
from benchmarks.carrying import Carried, carry, gather_wheels

flags.adopt_module_key_flags(command_line)

OUTPUT = flags.DEFINE_string("output", "carried", "Folder to make; must not exist yet.")
EVENT_START = flags.DEFINE_list("event_start", ["8750"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["8752"], "Last events of the ranges.")
PYTHON = flags.DEFINE_string("python", "3.12", "Version of Python on the target machine.")
AT_HAND = flags.DEFINE_list(
    "at_hand", ["jax==0.11.2", "jaxlib==0.11.2", "numpy==2.5.*"], "Packages on the target machine."
)
MEGABYTES = flags.DEFINE_float(
    "megabytes", 60.0, "Largest size of the folder, in MB.", lower_bound=1
)


def main() -> None:
    """Makes the folder and prints the command to run in it."""
    carried = Carried(
        folder=Path(OUTPUT.value).absolute(),
        data=command_line.workdir("data"),
        event_ids=command_line.event_range(EVENT_START, EVENT_END),
        megabytes=MEGABYTES.value,
    )
    size = carry(carried, lambda place: gather_wheels(place, PYTHON.value, AT_HAND.value))
    print(f"{carried.folder}: {size:.1f} MB. On the machine with the card:\n")
    print(carried.command())


if __name__ == "__main__":
    command_line.run(main)
