"""Reconstructs the tracks of events in files, and scores tracks.

hypertrack reconstruct PATH... [--model=pu2] [--output=tracks]
    Finds the tracks of each event and writes event*-submission.csv: event_id, hit_id, track_id, 0
    for a hit in no track. A PATH is a directory or zip of csv files of TrackML or ACTS, one event
    of these (DIRECTORY/event000001000), a directory of ColliderML's Parquet tables, or an event
    file (.npz) or a directory of them. Events whose submission is there are skipped, so the same
    command goes on where it stopped. Where there is truth, the scores are printed. With --pages=1
    the first event is drawn, too: event*.html, and event*.json for the event display Phoenix.
    With --scheduler=ADDRESS the workers of a running dask cluster share the events.

hypertrack score TRUTH SUBMISSION
    Scores the tracks of any program against the truth. TRUTH is a PATH as above. SUBMISSION is a
    csv file with the columns hit_id and track_id, and event_id if there are several events; or a
    directory of event*-submission.csv; or a .parquet of ColliderML.

A track matches a particle when each has more than half of its hits in the other, both with at least
min_hits hits.
"""

import functools
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags
from tqdm import tqdm

from hypertrack_jax.command.start import (
    DEVICES,
    choose_device,
    collect_garbage_rarely,
    end_with,
    keep_programs,
    quiet_xla,
)
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.report import EVENT_ID, Row, event_table, summary_table
from hypertrack_jax.events.places import EventPlace, find_events
from hypertrack_jax.events.submissions import read_submissions, submission_path
from hypertrack_jax.files import require_writable

if TYPE_CHECKING:
    from hypertrack_jax.reconstruction.reconstructor import Reconstructor
else:
    # The tests check annotations at run time; jax is loaded when it is needed.
    Reconstructor = Any

MOST_LISTED = 20
"""Events up to which each has a line of its own."""


class Options(NamedTuple):
    """The values of the flags, which explain them."""

    model: Path
    output: Path
    voxdyn: Path | None
    min_hits: int | None
    pages: int
    lenient: bool
    device: str
    compilation_cache: str | None
    scheduler: str | None


def main() -> None:
    """The command as it is installed."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    run(sys.argv)


def run(argv: Sequence[str]) -> None:
    """Runs one of the verbs; a user's mistake becomes one sentence and exit status 2.

    Ctrl-C exits with 130, and events that were left out give 1. An error that is neither
    `UserError` nor `OSError` is a defect and keeps its traceback; so do these two if the
    environment has HYPERTRACK_TRACEBACK.
    """
    try:
        options, verb, paths = _parsed(argv)
        VERBS[verb](options, paths)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        if "HYPERTRACK_TRACEBACK" in os.environ:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def reconstruct(options: Options, paths: Sequence[str]) -> None:
    """Finds the tracks of events, and scores them where there is truth."""
    if not paths:
        raise UserError("hypertrack reconstruct: a path is missing; name events.")
    output, places = options.output, find_events(paths)
    due = [place for place in places if not submission_path(output, place.event_id).exists()]
    if len(due) < len(places):
        print(
            f"{len(places) - len(due)} of {len(places)} events have their tracks in {output} "
            "already and are skipped; remove them to have them found again."
        )
    if not due:
        return
    require_writable(output)
    started = time.monotonic()
    rows, problems = _reconstructed(options, due)
    if any(row["particles"] is not None for row in rows):
        print(_tables(rows))
    print(f"tracks of {len(rows)} events in {output}, {time.monotonic() - started:.1f} s")
    end_with(problems)


def score(options: Options, paths: Sequence[str]) -> None:
    """Scores submissions against the truth."""
    from hypertrack_jax.evaluation.measures import measures_table
    from hypertrack_jax.evaluation.reconstruct_files import score_files

    if len(paths) != 2:
        raise UserError(
            f"hypertrack score: expected two paths, TRUTH and SUBMISSION, but got {len(paths)}."
        )
    problems: list[str] = []
    measured: list = []
    places, submissions = find_events(paths[:1]), read_submissions(paths[1])
    rows = list(score_files(places, submissions, options.min_hits or 4, problems, measured))
    if rows:
        print(measures_table(measured), _tables(rows), sep="\n\n")
    end_with(problems)


VERBS = {"reconstruct": reconstruct, "score": score}


def _flags() -> flags.FlagValues:
    """The flags of the command alone: a program that imports this keeps its own."""
    values = flags.FlagValues()
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    string("model", "pu2", "A model that comes with the package, or the path of one.")
    string("output", "tracks", "Directory for the tracks.")
    string("voxdyn", None, "Voxel-Dynamics file; default: that in the model, or beside it.")
    string(
        "compilation_cache",
        None,
        "Directory where compiled programs are kept for the next run; default: one in the user's "
        "cache directory; empty: they are not kept.",
    )
    flags.DEFINE_integer(
        "min_hits",
        None,
        "Fewest hits of a particle that should be found; default: the model's, or 4.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "pages",
        0,
        "Write the pages of the first so many events, event*.html, to turn them in a browser, and "
        "event*.json for Phoenix.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "lenient",
        False,
        "Leave out hits that are not finite and a particle named 0, and weigh hits equally where "
        "there are no weights; warnings count each.",
        flag_values=values,
    )
    string(
        "scheduler",
        None,
        "Address of the scheduler of a running dask cluster, whose workers share the events; they "
        "have to see all files under the same paths.",
    )
    flags.DEFINE_enum("device", "auto", DEVICES, "Where to compute.", flag_values=values)
    values.set_gnu_getopt(True)
    return values


def _parsed(argv: Sequence[str]) -> tuple[Options, str, list[str]]:
    """The options, the verb and its paths; help where that is asked for."""
    values = _flags()
    if "help" in argv[1:2] or {"--help", "-h"} & set(argv):
        print(__doc__, values.module_help(__name__), sep="\n")
        sys.exit(0)
    try:
        verb, *paths = values(list(argv))[1:] or [""]
    except flags.Error as error:
        raise UserError(f"{error}; hypertrack --help explains every flag.") from error
    if verb not in VERBS:
        raise UserError(
            f"expected {' or '.join(f'hypertrack {verb}' for verb in VERBS)}, got {verb!r}; "
            "hypertrack --help explains them."
        )
    given: dict[str, Any] = {name: values[name].value for name in Options._fields}
    for name in ("model", "output", "voxdyn", "scheduler"):
        if given[name] == "":
            raise UserError(f"--{name}=: a value is missing.")
    for name in ("model", "output", "voxdyn"):
        given[name] = given[name] and Path(given[name]).expanduser()
    return Options(**given), verb, paths


def _reconstructed(options: Options, places: Sequence[EventPlace]) -> tuple[list[Row], list[str]]:
    """The rows of the events, and what is wrong with those left out."""
    quiet_xla()
    # Imported late, so that mistakes in the paths are reported before jax is loaded.
    from hypertrack_jax.evaluation.reconstruct_files import reconstruct_files

    model = load_model(options)
    min_hits = options.min_hits or model.tune.cluster.min_hits
    problems: list[str] = []
    how: dict[str, Any] = {"lenient": options.lenient, "num_pages": options.pages}
    how["watched"] = functools.partial(tqdm, unit="event")
    if options.scheduler is not None:
        return _shared(options, options.scheduler, places, min_hits, problems, how), problems
    rows = reconstruct_files(model, places, options.output, min_hits, problems, **how)
    return list(rows), problems


def _shared(
    options: Options,
    scheduler: str,
    places: Sequence[EventPlace],
    min_hits: int,
    problems: list[str],
    how: dict[str, Any],
) -> list[Row]:
    """The rows of the events, which the workers of a cluster reconstruct."""
    try:
        from hypertrack_jax.evaluation.cluster_files import reconstruct_on_cluster
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"--scheduler needs {error.name}, which is not installed; "
            "run pip install 'hypertrack-jax[cluster]'."
        ) from error
    # Workers have directories of their own.
    there = options._replace(output=options.output.absolute())
    if options.model.exists():
        there = there._replace(model=options.model.absolute())
    if options.voxdyn is not None:
        there = there._replace(voxdyn=options.voxdyn.absolute())
    if options.compilation_cache:
        there = there._replace(compilation_cache=str(Path(options.compilation_cache).absolute()))
    places = [place._replace(source=place.source.absolute()) for place in places]
    load = functools.partial(load_model, there)
    rows = reconstruct_on_cluster(scheduler, load, places, there.output, min_hits, problems, **how)
    return sorted(rows, key=lambda row: row[EVENT_ID] or 0)


def load_model(options: Options) -> Reconstructor:
    """Loads the model with the chosen device and compilation cache; also runs on workers."""
    quiet_xla()
    collect_garbage_rarely()
    from hypertrack_jax.memory import keep_freed_memory
    from hypertrack_jax.reconstruction.reconstructor import Reconstructor

    keep_freed_memory()
    choose_device(options.device)
    keep_programs(options.compilation_cache)
    return Reconstructor.load(options.model, voxdyn=options.voxdyn)


def _tables(rows: Sequence[Row]) -> str:
    tables = [event_table(rows)] if len(rows) <= MOST_LISTED else []
    return "\n\n".join([*tables, summary_table(rows)]) + "\n"
