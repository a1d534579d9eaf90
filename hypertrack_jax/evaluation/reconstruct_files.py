"""Host side: reconstructs events from files, and scores submissions from files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.event_page import page_name, write_event_page
from hypertrack_jax.evaluation.measures import Measures, measure_tracks
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.evaluation.phoenix import write_phoenix
from hypertrack_jax.evaluation.report import EVENT_ID, Row
from hypertrack_jax.events.event import Event, hits_of
from hypertrack_jax.events.places import EventPlace, reader_of
from hypertrack_jax.events.submissions import Submission, submission_path, submitted_label
from hypertrack_jax.events.trackml import write_submission

_SCORES = ("efficiency", "purity", "dms", "trackml", "hit_efficiency", "hit_purity")
_HEADINGS = ("efficiency", "purity", "DMS", "TrackML", "hit efficiency", "hit purity")


Reconstruct: TypeAlias = Callable[[np.ndarray | Event], Tracks]
"""From hit positions in mm, or an event with cells, to tracks."""
Found: TypeAlias = Row | str
"""Size and scores of an event, or what is wrong with it."""


def reconstruct_files(
    reconstruct: Reconstruct,
    places: Sequence[EventPlace],
    output: Path,
    min_hits: int,
    problems: list[str],
    *,
    lenient: bool = False,
    num_pages: int = 0,
    watched: Callable[[Sequence[EventPlace]], Iterable[EventPlace]] = iter,
) -> Iterator[Row]:
    """Reconstructs events one by one, and writes each one's tracks as soon as they are found.

    Args:
      reconstruct: what finds the tracks.
      places: where the events lie.
      output: directory for `event000001000-submission.csv` and so on, each whole or not at all.
      min_hits: fewest hits of a particle that should be found.
      problems: gets a sentence for each event that cannot be read or reconstructed.
      lenient: as in `read_event`.
      num_pages: so many first events are also drawn by `write_event_page` and `write_phoenix`.
      watched: passes on the places one by one, and may show progress, such as `tqdm`.

    Yields:
      Size and scores of each event that was reconstructed, as `track_row` has them.

    Raises:
      ImportError: the model or a page needs a package that is missing.
      OSError: a file cannot be written.
    """
    read = reader_of(places, lenient=lenient)
    for number, place in enumerate(watched(places)):
        found = reconstruct_place(
            reconstruct, read, place, output, min_hits, has_page=number < num_pages
        )
        if isinstance(found, str):
            problems.append(found)
        else:
            yield found


def reconstruct_place(
    reconstruct: Reconstruct,
    read: Callable[[EventPlace], Event],
    place: EventPlace,
    output: Path,
    min_hits: int,
    *,
    has_page: bool = False,
) -> Found:
    """Reconstructs one event, and writes its tracks.

    Arguments and errors are those of `reconstruct_files`.

    Returns:
      Size and scores, or a sentence on what is wrong with the event.
    """
    try:
        event = read(place)
    except MissingPackageError:
        # Every other event would fail in the same way.
        raise
    except (UserError, OSError) as error:
        return str(error)
    try:
        tracks = reconstruct(hits_of(event))
    except MissingPackageError:
        raise
    except UserError as error:
        return f"event {event.event_id}: {error}"
    label = tracks.hit_label
    if has_page:
        page = output / page_name(place.event_id)
        write_event_page(page, event, label, tracks.membership, min_hits)
        write_phoenix(page.with_suffix(".json"), event, label, min_hits)
    write_submission(submission_path(output, place.event_id), event, label)
    return track_row(event, label, min_hits)


def score_files(
    places: Sequence[EventPlace],
    submissions: dict[int | None, Submission],
    min_hits: int,
    problems: list[str],
    measured: list[Measures] | None = None,
) -> Iterator[Row]:
    """Scores submissions against the truth.

    Args:
      places: where the events with truth lie.
      submissions: what `read_submissions` gave.
      min_hits: fewest hits of a particle that should be found.
      problems: gets a sentence for each event that cannot be scored.
      measured: gets what `measure_tracks` gives for each event.

    Yields:
      Size and scores of each event, as `track_row` has them.

    Raises:
      UserError: the submission does not say which event it is of, and there are several.
    """
    if None in submissions:
        if len(places) > 1 or len(submissions) > 1:
            raise UserError(
                f"{submissions[None].path}: has no column event_id, but there are "
                f"{len(places)} events with truth and {len(submissions)} submissions; add the "
                "column, or name one event and one submission."
            )
        submissions = {places[0].event_id: submissions[None]}
    by_number = {place.event_id: place for place in places}
    read = reader_of([by_number[number] for number in sorted(by_number) if number in submissions])
    for number in sorted(
        by_number.keys() | {number for number in submissions if number is not None}
    ):
        if number not in submissions:
            problems.append(f"event {number}: there is truth, but no submission.")
        elif number not in by_number:
            problems.append(f"event {number}: there is a submission, but no truth.")
        else:
            try:
                event = read(by_number[number])
                if not event.has_truth:
                    raise UserError(f"event {number} has no truth; there is nothing to score by.")
                label = submitted_label(submissions[number], event)
            except (UserError, OSError) as error:
                problems.append(str(error))
            else:
                if measured is not None:
                    measured.append(measure_tracks(event, label))
                yield track_row(event, label, min_hits)


def track_row(event: Event, hit_label: Int[np.ndarray, " hit"], min_hits: int) -> Row:
    """Size and track scores of an event; scores are None without truth."""
    scores = track_scores(event, hit_label, min_hits) if event.has_truth else None
    return {
        EVENT_ID: event.event_id,
        "hits": len(event.position),
        "tracks": len(np.unique(hit_label[hit_label >= 0])),
        "particles": getattr(scores, "num_particles", None),
        **{
            name: getattr(scores, field, None)
            for name, field in zip(_HEADINGS, _SCORES, strict=True)
        },
    }
