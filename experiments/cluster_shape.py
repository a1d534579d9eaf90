"""Measures how much the shape of clusters helps a pair filter, on simulated and on real events.

python experiments/simulate.py --num_events=32 --event_start=5000
python experiments/cluster_shape.py --input=DIRECTORY

The filter is trained on simulated events alone. The real event has few particles, so copies of it,
turned about the beam line, are put together. Simulated events are thinned to the same density.
"""

from pathlib import Path

import command_line
from absl import flags
from studies.cluster_shape import (
    answers_of,
    pair_sample,
    rotated_copies,
    table_rows,
    thresholds_of,
    trained_both,
)

from hypertrack_jax.evaluation.tables import markdown_table
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.trackml import read_event
from hypertrack_jax.reconstruction.load import load_parts
from hypertrack_jax.streams import stream

flags.declare_key_flag("workdir")

INPUT = flags.DEFINE_string("input", None, "Directory or zip of the real event.", required=True)
REAL_EVENT = flags.DEFINE_integer("real_event", 1, "Number of the real event.")
EVENT_START = flags.DEFINE_list("event_start", ["5000"], "First events of the ranges to train on.")
EVENT_END = flags.DEFINE_list("event_end", ["5023"], "Last events of the ranges, included.")
TEST_START = flags.DEFINE_list("test_start", ["5024"], "First events of the ranges to test on.")
TEST_END = flags.DEFINE_list("test_end", ["5031"], "Last events of the ranges, included.")
MODEL = flags.DEFINE_string("model", "positions", "Model whose graph gives the pairs.")
REAL_SHARE = flags.DEFINE_float(
    "real_share", 0.05, "Fraction of a full event's particles that the real event has."
)
NUM_COPIES = flags.DEFINE_integer("num_copies", 4, "Turned copies in a test event.", lower_bound=1)
NUM_STEPS = flags.DEFINE_integer("num_steps", 3000, "Training steps.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, thinning and turns.", lower_bound=0)


def main() -> None:
    """Trains a filter without and one with shape, and prints what each keeps."""
    directory = command_line.workdir("data")
    parts = load_parts(MODEL.value, None, -1, None)
    voxdyn, min_count = parts.voxdyn, parts.tune.voxdyn.min_count
    share = NUM_COPIES.value * REAL_SHARE.value
    train = pair_sample(
        (
            thinned(load_event(directory, event_id), share)
            for event_id in command_line.event_range(EVENT_START, EVENT_END)
        ),
        voxdyn,
        min_count,
    )
    layers = trained_both(train, NUM_STEPS.value, SEED.value)
    thresholds = thresholds_of(layers, train)
    tests = [
        copied(thinned(load_event(directory, event_id), REAL_SHARE.value), event_id)
        for event_id in command_line.event_range(TEST_START, TEST_END)
    ]
    real_event = read_event(Path(INPUT.value).expanduser(), REAL_EVENT.value)
    real = [copied(real_event, number) for number in range(4)]
    simulated, found = (
        [
            answers_of(layers, thresholds, pair_sample([event], voxdyn, min_count))
            for event in events
        ]
        for events in (tests, real)
    )
    columns = [
        f"{kind}: {what}" for kind in ("simulated", "real") for what in ("without", "with", "ratio")
    ]
    print(
        markdown_table(
            ["false pairs kept", *columns, "simulated / real"], table_rows(simulated, found)
        )
    )


def thinned(event: Event, share: float) -> Event:
    """Keeps a share of the particles, and noise in proportion."""
    return thin(event, share, -1, stream("thin for the shape", SEED.value, event.event_id))


def copied(event: Event, number: int) -> Event:
    """Copies of an event at random angles, as one event."""
    rng = stream("turn for the shape", SEED.value, number)
    return rotated_copies(event, NUM_COPIES.value, rng)


if __name__ == "__main__":
    command_line.run(main)
