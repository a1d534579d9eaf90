"""Compares the stages of a model in ONNX with our own, and both with double precision.

python experiments/onnx_agreement.py --read_tag=positions --event_start=8760 --event_end=8762 \
    --rfactor=0.1
"""

import command_line
from absl import flags
from studies.onnx_agreement import HEADING, agreement, sessions

from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.streams import stream

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.", required=True)
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
EVENT_START = flags.DEFINE_list("event_start", ["8760"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["8762"], "Last events of the ranges.")
RFACTOR = flags.DEFINE_float("rfactor", 1.0, "Fraction of particles kept.", 0.0, 1.0)


def main() -> None:
    """Prints a line for each stage of each event."""
    model = Reconstructor.load(READ_TAG.value, command_line.workdir("models"), EPOCH.value)
    of_stages = sessions(model)
    print(HEADING)
    for number in command_line.event_range(EVENT_START, EVENT_END):
        event = load_event(command_line.workdir("data"), number)
        event = thin(event, RFACTOR.value, -1, stream("thin", 0, number))
        for line in agreement(model, of_stages, event):
            print(f"| {number} | {len(event.position)} | {line}", flush=True)


if __name__ == "__main__":
    command_line.run(main)
