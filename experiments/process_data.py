"""Turns events of other programs into one .npz per event under --workdir/data.

python experiments/process_data.py --input=train_sample.zip --event_start=1000 --event_end=1099
python experiments/process_data.py --input=csv --format=acts
python experiments/process_data.py --input=ttbar_pu0 --format=colliderml

TrackML files are read as Kaggle distributes them. Cells are read if there is a detectors.csv.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import command_line
from absl import flags
from hardware import map_in_processes
from tqdm import tqdm

from hypertrack_jax.command.start import end_with
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.acts_csv import list_acts_events, read_acts_event
from hypertrack_jax.events.colliderml import list_colliderml_events, read_colliderml_events
from hypertrack_jax.events.store import event_ids, save_event
from hypertrack_jax.events.trackml import lacks_detector, list_event_ids, read_event

flags.declare_key_flag("workdir")

LISTS = {
    "trackml": list_event_ids,
    "acts": list_acts_events,
    "colliderml": list_colliderml_events,
}
"""What lists the events of each format."""
NAMES = {"trackml": "TrackML", "acts": "ACTS", "colliderml": "ColliderML"}

INPUT = flags.DEFINE_string(
    "input", None, "Directory of the files; TrackML's and ACTS's may be a zip.", required=True
)
FORMAT = flags.DEFINE_enum(
    "format", "trackml", [*LISTS], "TrackML csv, ACTS csv, or the Parquet tables of ColliderML."
)
EVENT_START = flags.DEFINE_list(
    "event_start", [], "First events of the ranges; default: all events."
)
EVENT_END = flags.DEFINE_list("event_end", [], "Last events of the ranges, included.")

DETECTOR = flags.DEFINE_string(
    "detector",
    None,
    "TrackML's detectors.csv, without which cells are left out; default: the one in --input, or "
    "beside it if it is a zip; none with --format=acts.",
)
LENIENT = flags.DEFINE_boolean(
    "lenient",
    False,
    "TrackML: leave out hits that are not finite and a particle with particle_id 0, and weigh hits "
    "equally where there are no weights; warnings say how many.",
)


def main() -> None:
    """Converts the chosen events on all cores; lists those that could not be converted."""
    source = Path(INPUT.value).expanduser()
    directory = command_line.workdir("data")
    ids = choose_events(
        source, command_line.whole_numbers(EVENT_START), command_line.whole_numbers(EVENT_END)
    )
    outcomes = list(tqdm(converted_events(source, directory, ids), total=len(ids), unit="event"))
    problems = [problem for problem in outcomes if problem]
    print(f"{len(ids) - len(problems)} events written to {directory}")
    if FORMAT.value == "trackml" and not DETECTOR.value and lacks_detector(source):
        print("their cells are left out, since no detectors.csv is there; name it by --detector")
    end_with(problems)


def converted_events(source: Path, directory: Path, ids: list[int]) -> Iterator[str | None]:
    """Converts events; yields what is wrong with each, or None."""
    if FORMAT.value == "colliderml":
        # Many events are in one file, which is read once.
        for found in read_colliderml_events(source, ids):
            save_event(directory, found.event)
            yield None
        return
    lenient = LENIENT.value and FORMAT.value == "trackml"
    detector = Path(DETECTOR.value).expanduser() if DETECTOR.value else None
    convert_one = functools.partial(convert, FORMAT.value, source, directory, lenient, detector)
    with map_in_processes(convert_one, ids) as outcomes:
        yield from outcomes


def choose_events(source: Path, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """All events of `source`, or those of the ranges, every one of which must be there."""
    found = LISTS[FORMAT.value](source)
    if not found:
        has_tables = FORMAT.value == "colliderml"
        expected = "rows in tracker_hits" if has_tables else "event*-hits.csv[.gz]"
        raise FileNotFoundError(
            f"{source}: no {NAMES[FORMAT.value]} event in it; expected {expected}."
        )
    if not starts and not ends:
        return found
    ids = event_ids(starts, ends)
    missing = sorted(set(ids) - set(found))
    if missing:
        raise FileNotFoundError(
            f"{source}: event {missing[0]} is not in it ({len(missing)} of {len(ids)} events are "
            f"missing; it has {len(found)}, from {found[0]} to {found[-1]}); "
            "narrow --event_start and --event_end."
        )
    return ids


def convert(
    form: str, source: Path, directory: Path, lenient: bool, detector: Path | None, event_id: int
) -> str | None:
    """Reads one event and writes its .npz; returns what is wrong with one that cannot be read."""
    try:
        if form == "acts":
            event = read_acts_event(source, event_id, detector=detector)
        else:
            event = read_event(source, event_id, lenient=lenient, detector=detector)
    except (UserError, OSError) as error:
        return str(error)
    save_event(directory, event)
    return None


if __name__ == "__main__":
    command_line.run(main)
