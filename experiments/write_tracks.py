"""Writes tracks in the format of another program.

python experiments/write_tracks.py --events=data --submission=tracks --format=acts --output=csv
python experiments/write_tracks.py --events=data --submission=tracks --format=colliderml \
    --output=tracks.parquet

--submission is what `hypertrack reconstruct` and inference.py write, or the tracks of any other
program as event_id, hit_id, track_id.
"""

from collections.abc import Iterator
from pathlib import Path

import command_line
import numpy as np
from absl import flags

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.acts_csv import write_acts_tracks
from hypertrack_jax.events.colliderml import write_colliderml_tracks
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.places import find_events, read_place
from hypertrack_jax.events.submissions import read_submissions, submitted_label

flags.adopt_module_key_flags(command_line)

EVENTS = flags.DEFINE_string("events", None, "The events: a directory or a file.", required=True)
SUBMISSION = flags.DEFINE_string(
    "submission", None, "The tracks: a csv file, or a directory of *-submission.csv.", required=True
)
FORMAT = flags.DEFINE_enum(
    "format", None, ["acts", "colliderml"], "The format to write.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Directory of ACTS's csv files, or ColliderML's Parquet file.", required=True
)


def main() -> None:
    """Writes the tracks of all events that are submitted."""
    output = Path(OUTPUT.value)
    if FORMAT.value == "colliderml":
        print(write_colliderml_tracks(output, labelled_events()))
        return
    for event, label in labelled_events():
        name = f"event{event.event_id:09d}-tracks.csv"
        print(write_acts_tracks(output / name, event, label))


def labelled_events() -> Iterator[tuple[Event, np.ndarray]]:
    """The submitted events one by one, each with the track of every hit."""
    submissions = read_submissions(SUBMISSION.value)
    places = [place for place in find_events([EVENTS.value]) if place.event_id in submissions]
    if not places:
        raise UserError(
            f"--submission={SUBMISSION.value}: has the tracks of no event of "
            f"--events={EVENTS.value}; give the events that were reconstructed."
        )
    for place in places:
        event = read_place(place)
        yield event, submitted_label(submissions[place.event_id], event)


if __name__ == "__main__":
    command_line.run(main)
