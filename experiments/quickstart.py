"""The first command: simulates events, and finds and scores their tracks with a shipped model.

With --train it simulates, fits Voxel-Dynamics, trains, and reconstructs held-out events. Runs other
scripts and prints each command, which you can repeat and change. Existing events and models are
used again.

python experiments/quickstart.py --workdir=quickstart
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import command_line
from absl import flags

from hypertrack_jax.events.store import event_path
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.voxdyn.storage import voxdyn_path

flags.adopt_module_key_flags(command_line)

PARAM = flags.DEFINE_enum("param", "helix", list(PACKAGED), "Tune to train with --train.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 1000, "Training steps of --train.", lower_bound=1)
NUM_EVENTS = flags.DEFINE_integer("num_events", 100, "Full events for --train.", 1)
NUM_HELD_OUT = flags.DEFINE_integer("num_held_out", None, "Held-out events; 8, with --train 40.", 1)
TRAIN = flags.DEFINE_boolean("train", False, "Fit and train a model instead: minutes, not seconds.")
FIRST_EVENT, FIRST_HELD_OUT = 1000, 8750
RFACTOR = 0.01
NCELL = 16384
NUM_COPIES = 16
MIN_COUNT = 12
CUT_THRESHOLD = 0.7
SHIPPED = "pu2"


def main() -> None:
    """Runs the scripts, each under the same --workdir and --device."""
    started = time.monotonic()
    start, num_events = FIRST_HELD_OUT, NUM_HELD_OUT.value or (40 if TRAIN.value else 8)
    simulate(start, start + num_events - 1)
    how: dict[str, Any] = {"read_tag": SHIPPED}
    if TRAIN.value:
        how["read_tag"] = train(FIRST_EVENT, FIRST_EVENT + NUM_EVENTS.value - 1)
        how |= {"cluster": "cut", "edge_threshold": CUT_THRESHOLD}
    how |= {"event_start": start, "event_end": start + num_events - 1, "rfactor": RFACTOR}
    script("inference", **how, figures=True)
    print(f"\nquickstart: {time.monotonic() - started:.0f} s")


def simulate(start: int, end: int) -> None:
    """Simulates full events, unless all of them exist."""
    data = command_line.workdir("data")
    if not all(event_path(data, number).is_file() for number in range(start, end + 1)):
        script("simulate", num_events=end - start + 1, event_start=start)


def train(event_start: int, event_end: int) -> str:
    """Trains an edge predictor, for tracks by `cut`; the transformer would take longer."""
    tag = f"quickstart-{PARAM.value}"
    simulate(event_start, event_end)
    node2node = load_tune(PARAM.value).voxdyn.node2node
    ranges = {"event_start": event_start, "event_end": event_end}
    if not voxdyn_path(command_line.workdir("models"), node2node, NCELL).is_file():
        judged = {"rfactors": RFACTOR, "min_count": MIN_COUNT, "num_copies": NUM_COPIES}
        script("pretrain_voxdyn", node2node=node2node, ncell=NCELL, **ranges, **judged)
    script(
        "train",
        param=PARAM.value,
        ncell=NCELL,
        min_count=MIN_COUNT,
        save_tag=tag,
        phase=1,
        **ranges,
        # Thinner events take less time, so the model sees more of them.
        rfactor_start=RFACTOR / 2,
        rfactor_end=RFACTOR,
        num_steps=NUM_STEPS.value,
        # Longer than the run, so the learning rate does not reach its floor.
        period=NUM_STEPS.value * 6 // 5,
    )
    return tag


def script(name: str, **values) -> None:
    """Runs a script of this directory; its failure ends the quickstart with the same status."""
    shared = [command_line.WORKDIR, command_line.DEVICE, command_line.CACHE]
    values |= {flag.name: flag.value for flag in shared if flag.value is not None}
    arguments = [f"--{flag}={value}" for flag, value in values.items()]
    path = Path(__file__).with_name(f"{name}.py")
    print("\n$ python", shlex.join([f"experiments/{path.name}", *arguments]), flush=True)
    status = subprocess.run([sys.executable, str(path), *arguments], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    command_line.run(main)
