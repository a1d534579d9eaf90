"""Draws the losses and the edge AUC of trainings under --workdir/runs, one after another.

python experiments/plot_training.py --tags=pu2-phase1,pu2 --output=training.png
"""

from pathlib import Path

import command_line
from absl import flags
from studies.training_curves import plot_curves, read_curves

flags.adopt_module_key_flags(command_line)

TAGS = flags.DEFINE_list("tags", None, "Names of the models, in the order to draw.", required=True)
OUTPUT = flags.DEFINE_string("output", "training.png", "File to write; .png, .pdf or .svg.")


def main() -> None:
    """Reads what was logged, and draws it."""
    trainings = {tag: read_curves(command_line.workdir("runs", tag)) for tag in TAGS.value}
    plot_curves(Path(OUTPUT.value), trainings)
    print(OUTPUT.value)


if __name__ == "__main__":
    command_line.run(main)
