"""Host side: tracks of the same events by our models and by chains of ACTS, side by side."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.end_to_end import Run, one_run
from benchmarks.peers.acts_chain import find_tracks
from benchmarks.timing import alone, forget_peak, peak_memory

from hypertrack_jax.evaluation.efficiency import (
    BinnedRatio,
    bin_labels,
    binned_efficiency,
    joint_ratios,
    wilson_interval,
)
from hypertrack_jax.evaluation.measures import MEASURES, measure_tracks
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure
from hypertrack_jax.evaluation.tables import markdown_table, mean_and_spread
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.pileup import OWN_NOISE_RATIO, thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.files import replace_file
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.streams import stream

CHAINS = {
    "ACTS, seeds from 0.15 GeV": (0.15, False),
    "ACTS, seeds from 0.5 GeV": (0.5, False),
    "ACTS, seeds from 0.15 GeV, displaced pass": (0.15, True),
}
"""Smallest transverse momentum of seeds in GeV, and whether a second pass looks for displaced
particles."""
DRAWN = ("vertex radius (mm)", "pT (GeV)", "abs(eta)")
PIXELS = MEASURES[2].name


class Setting(NamedTuple):
    """Events to compare at one pile-up."""

    data: Path
    models: Path
    event_ids: Sequence[int]
    rfactor: float
    seed: int
    field: str
    """That of the events, as in `simulate_event`."""

    @property
    def pileup(self) -> str:
        """The mean number of collisions."""
        return f"{200 * self.rfactor:g}"

    @property
    def written(self) -> dict[str, Any]:
        """What a file tells of its events, beside the pile-up."""
        return {"event_ids": list(self.event_ids), "seed": self.seed, "field": self.field}


def compare(directory: Path, setting: Setting, programs: Sequence[str]) -> None:
    """Runs each program that has no file of these events at this pile-up, and writes its file.

    Args:
      directory: where the files go.
      setting: the events.
      programs: names of `CHAINS` and of models.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs:
        path = _path(directory, setting.pileup, program)
        if not (path.is_file() and setting.written.items() <= json.loads(path.read_text()).items()):
            found = alone(measure, setting, program)
            with replace_file(path) as file:
                file.write(json.dumps(found, indent=1).encode())


def measure(setting: Setting, program: str) -> dict[str, Any]:
    """What one program finds in all events. Needs a process of its own, to measure the memory."""
    run = _runner(setting, program)
    rows, peak = [], 0.0
    for event_id in setting.event_ids:
        event = thin(
            load_event(setting.data, event_id),
            setting.rfactor,
            OWN_NOISE_RATIO,
            stream("thin for a benchmark", setting.seed, event_id),
        )
        if program not in CHAINS:
            # The first run of an event may compile.
            run(event)
        idle = forget_peak()
        done = run(event)
        peak = max(peak, peak_memory() - idle)
        rows.append(_row(event, done))
    return {
        "program": program,
        "pileup": setting.pileup,
        **setting.written,
        "memory": peak,
        "rows": rows,
    }


def _runner(setting: Setting, program: str):
    if program in CHAINS:
        seed_pt, is_displaced = CHAINS[program]
        return lambda event: Run(*find_tracks(event, seed_pt, is_displaced, setting.field))
    model = Reconstructor.load(program, setting.models)
    return lambda event: one_run(model, event)


def _row(event: Event, done: Run) -> dict[str, Any]:
    scores = track_scores(event, done.hit_label)
    pixels: Any = measure_tracks(event, done.hit_label)[PIXELS]
    bins = binned_efficiency(event, done.hit_label)
    return {
        "hits": len(event.position),
        "seconds": done.wall,
        "cpu": done.cpu,
        "efficiency": scores.efficiency,
        "purity": scores.purity,
        "DMS": scores.dms,
        "TrackML": scores.trackml,
        "pixels": pixels.efficiency,
        "bins": {name: [column.tolist() for column in bins[name]] for name in DRAWN},
    }


def results(directory: Path) -> list[dict[str, Any]]:
    """The content of all files, by pile-up."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    return sorted(found, key=lambda one: (float(one["pileup"]), one["program"]))


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each program at each pile-up: mean and standard deviation over the events."""
    lines = []
    for one in found:
        rows = one["rows"]
        scores = [
            mean_and_spread([row[name] for row in rows], 3)
            for name in ("efficiency", "purity", "DMS", "TrackML", "pixels")
        ]
        seconds = [statistics.median(row[name] for row in rows) for name in ("seconds", "cpu")]
        lines.append(
            [
                one["pileup"],
                one["program"],
                str(len(rows)),
                str(round(np.mean([row["hits"] for row in rows]))),
                *scores,
                *(f"{value:.2g}" for value in seconds),
                f"{one['memory']:.2f}",
            ]
        )
    heading = ["pile-up", "program", "events", "hits", "efficiency", "purity", "DMS", "TrackML"]
    return markdown_table([*heading, PIXELS, "s", "processor s", "GB"], lines, num_words=2)


def draw(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Draws the efficiency by origin, momentum and direction, a row for each pile-up."""
    pileups = list(dict.fromkeys(one["pileup"] for one in found))
    programs = list(dict.fromkeys(one["program"] for one in found))
    with saved_figure(path, 15.0, 3.6 * len(pileups) + 0.8) as figure:
        panels = figure.subplots(len(pileups), len(DRAWN), sharey=True, squeeze=False)
        for one in found:
            row = panels[pileups.index(one["pileup"])]
            place = programs.index(one["program"])
            for axes, name in zip(row, DRAWN, strict=True):
                _draw_bins(axes, name, _joint(one, name), place, len(programs), one["program"])
        for pileup, row in zip(pileups, panels, strict=True):
            row[0].set_ylabel(f"efficiency, pile-up {pileup}")
            row[0].set_ylim(0, 1.05)
        for axes, name in zip(panels[-1], DRAWN, strict=True):
            axes.set_xlabel(name)
        handles, names = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2)


def _joint(one: Mapping[str, Any], name: str) -> BinnedRatio:
    rows = [{name: BinnedRatio(*map(np.array, row["bins"][name]))} for row in one["rows"]]
    total, *others = rows
    for row in others:
        total = joint_ratios(total, row)
    return total[name]


def _draw_bins(axes: Any, name: str, of: BinnedRatio, place: int, number: int, label: str) -> None:
    labels = bin_labels(name)
    filled = np.flatnonzero(of.num_all)
    passed, every = (column[filled].tolist() for column in of)
    share = np.array(passed) / np.array(every)
    low, high = np.array([wilson_interval(*pair) for pair in zip(passed, every, strict=True)]).T
    axes.errorbar(
        filled + 0.8 / number * (place - (number - 1) / 2),
        share,
        yerr=[share - low, high - share],
        fmt="o",
        ms=4,
        color=TRACK_COLOURS[place % len(TRACK_COLOURS)],
        label=label,
    )
    axes.set_xticks(range(len(labels)), labels, size=11, rotation=30)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.minorticks_off()


def _path(directory: Path, pileup: str, program: str) -> Path:
    name = "".join(c if c.isalnum() or c in "._" else "_" for c in program)
    return directory / f"pileup_{pileup}_{name}.json"
