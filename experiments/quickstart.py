"""The whole road in one go: simulate, fit Voxel-Dynamics, train, reconstruct held-out events.

Runs the other scripts one after another and prints each command, which you can repeat and change.
Events and fits that exist are kept, and training continues where it stopped.

python experiments/quickstart.py --workdir=quickstart
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import command_line
from absl import flags

from hypertrack_jax.events.store import event_path
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.voxdyn.storage import voxdyn_path

flags.adopt_module_key_flags(command_line)

PARAM = flags.DEFINE_enum("param", "helix", list(PACKAGED), "Tune to train.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 1000, "Training steps.", lower_bound=1)
NUM_EVENTS = flags.DEFINE_integer("num_events", 100, "Full events to fit to and to train on.", 1)
NUM_HELD_OUT = flags.DEFINE_integer("num_held_out", 40, "Full events kept for the scores.", 1)
FIRST_EVENT, FIRST_HELD_OUT = 1000, 8750
PRETRAINED = flags.DEFINE_boolean("pretrained", False, "Take the shipped model; train nothing.")
RFACTOR = 0.01
NCELL = 16384
NUM_COPIES = 16
MIN_COUNT = 12
CUT_THRESHOLD = 0.7
SHIPPED = "pu2"


def main() -> None:
    """Runs the scripts, each under the same --workdir and --device."""
    started = time.monotonic()
    training = (FIRST_EVENT, FIRST_EVENT + NUM_EVENTS.value - 1)
    held_out = (FIRST_HELD_OUT, FIRST_HELD_OUT + NUM_HELD_OUT.value - 1)
    tag = SHIPPED if PRETRAINED.value else f"quickstart-{PARAM.value}"
    for start, end in (training, held_out):
        ids = range(start, end + 1)
        if not all(event_path(command_line.workdir("data"), i).is_file() for i in ids):
            script("simulate", num_events=len(ids), event_start=start)
    node2node = load_tune(PARAM.value).voxdyn.node2node
    if not voxdyn_path(command_line.workdir("models"), node2node, NCELL).is_file():
        ranges = {"event_start": training[0], "event_end": training[1]}
        judged = {"rfactors": RFACTOR, "min_count": MIN_COUNT, "num_copies": NUM_COPIES}
        script("pretrain_voxdyn", node2node=node2node, ncell=NCELL, **ranges, **judged)
    if not PRETRAINED.value:
        train(tag, *training)
    script(
        "inference",
        read_tag=tag,
        event_start=held_out[0],
        event_end=held_out[1],
        rfactor=RFACTOR,
        figures=True,
        **({} if PRETRAINED.value else {"cluster": "cut", "edge_threshold": CUT_THRESHOLD}),
    )
    print(f"\nquickstart: {(time.monotonic() - started) / 60:.1f} minutes")


def train(tag: str, event_start: int, event_end: int) -> None:
    """Trains the edge predictor, for tracks by `cut`; the transformer takes more time than that."""
    script(
        "train",
        param=PARAM.value,
        ncell=NCELL,
        min_count=MIN_COUNT,
        save_tag=tag,
        event_start=event_start,
        event_end=event_end,
        # Thinner events take less time, so the model sees more of them.
        rfactor_start=RFACTOR / 2,
        rfactor_end=RFACTOR,
        num_steps=NUM_STEPS.value,
        # Longer than the run, so the learning rate does not reach its floor.
        period=NUM_STEPS.value * 6 // 5,
    )


def script(name: str, **values) -> None:
    """Runs a script of this directory; its failure ends the quickstart with the same status."""
    common = {"workdir": command_line.WORKDIR.value, "device": command_line.DEVICE.value}
    arguments = [f"--{flag}={value}" for flag, value in {**values, **common}.items()]
    path = Path(__file__).with_name(f"{name}.py")
    print("\n$ python", shlex.join([f"experiments/{path.name}", *arguments]), flush=True)
    status = subprocess.run([sys.executable, str(path), *arguments], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    command_line.run(main)
