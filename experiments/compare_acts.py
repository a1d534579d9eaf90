"""Compares models with chains of ACTS on the same events: a table and a figure in figs/acts/.

Each program runs in a process of its own. A program that has results of the same events, --seed
and --field at this pile-up is not run again; remove its file in figs/acts/ to repeat it. Results of
other events at this pile-up are replaced.

python experiments/compare_acts.py --models=positions,cells --rfactor=0.1 --event_start=8750
"""

from pathlib import Path

import command_line
from absl import flags
from benchmarks.timing import machine
from studies.acts_comparison import CHAINS, Setting, compare, draw, results, table

from hypertrack_jax.events.simulation import FIELDS
from hypertrack_jax.events.store import require_events

flags.adopt_module_key_flags(command_line)

MODELS = flags.DEFINE_list("models", ["positions", "cells"], "Models to run, or none.")
CHAIN = flags.DEFINE_multi_enum(
    "chains",
    ["0", "1", "2"],
    ["0", "1", "2", "none"],
    "Chain of ACTS to run; repeat the flag for several. 0: seeds from 0.15 GeV; 1: from 0.5 GeV; "
    "2: from 0.15 GeV, with a second pass for displaced particles; none: no chain.",
)
RFACTOR = flags.DEFINE_float("rfactor", 0.1, "Fraction of particles kept.", 0.0, 1.0)
EVENT_START = flags.DEFINE_list("event_start", ["8750"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["8759"], "Last events of the ranges.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the thinning.", lower_bound=0)
FIELD = flags.DEFINE_enum("field", "solenoid", FIELDS, "The events' magnetic field, for ACTS.")


def main() -> None:
    """Runs what is missing at one pile-up, then reports on all that has been run."""
    directory = command_line.workdir("figs", "acts")
    event_ids = command_line.event_range(EVENT_START, EVENT_END)
    data = command_line.workdir("data")
    require_events(data, event_ids)
    models = command_line.workdir("models")
    setting = Setting(data, models, event_ids, RFACTOR.value, SEED.value, FIELD.value)
    chains = [list(CHAINS)[int(number)] for number in CHAIN.value if number != "none"]
    programs = [*chains, *(name for name in MODELS.value if name != "none")]
    compare(directory, setting, programs)
    found = results(directory)
    print(table(found), machine(), sep="\n\n")
    figure = Path(directory, "acts.png")
    draw(figure, found)
    print(figure)


if __name__ == "__main__":
    command_line.run(main)
