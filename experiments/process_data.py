"""Turns TrackML files, as Kaggle hands them out, into one .npz per event under --workdir/data.

python experiments/process_data.py --input=train_sample.zip --event_start=1000 --event_end=1099
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import command_line
from absl import flags
from hardware import map_in_processes
from tqdm import tqdm

from hypertrack_jax.command.start import end_with
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.store import event_ids, save_event
from hypertrack_jax.events.trackml import list_event_ids, read_event

flags.declare_key_flag("workdir")

INPUT = flags.DEFINE_string("input", None, "Directory or zip of TrackML files.", required=True)
EVENT_START = flags.DEFINE_list(
    "event_start", [], "First events of the ranges; default: all events."
)
EVENT_END = flags.DEFINE_list("event_end", [], "Last events of the ranges, included.")

LENIENT = flags.DEFINE_boolean(
    "lenient",
    False,
    "Leave out hits that are not finite and a particle named 0, and weigh hits equally where there "
    "are no weights; warnings count each.",
)


def main() -> None:
    """Converts the chosen events on all cores; lists those that could not be converted."""
    source = Path(INPUT.value).expanduser()
    directory = command_line.workdir("data")
    ids = choose_events(
        source, command_line.whole_numbers(EVENT_START), command_line.whole_numbers(EVENT_END)
    )
    with map_in_processes(
        functools.partial(convert, source, directory, LENIENT.value), ids
    ) as converted:
        outcomes = list(tqdm(converted, total=len(ids), unit="event"))
    problems = [problem for problem in outcomes if problem]
    print(f"{len(ids) - len(problems)} events written to {directory}")
    end_with(problems)


def choose_events(source: Path, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """All events of `source`, or those of the ranges, every one of which must be there."""
    found = list_event_ids(source)
    if not found:
        raise FileNotFoundError(f"{source}: no TrackML event in it; expected event*-hits.csv[.gz].")
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


def convert(source: Path, directory: Path, lenient: bool, event_id: int) -> str | None:
    """Reads one event and writes its .npz; returns what is wrong with one that cannot be read."""
    try:
        event = read_event(source, event_id, lenient=lenient)
    except (UserError, OSError) as error:
        return str(error)
    save_event(directory, event)
    return None


if __name__ == "__main__":
    command_line.run(main)
