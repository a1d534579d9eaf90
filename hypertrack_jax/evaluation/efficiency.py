"""Host side: which particles are found: the efficiency by momentum, direction, origin and hits."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Int64

from hypertrack_jax.evaluation.metrics import match_tracks
from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.events.kinematics import pseudorapidity

EDGES = {
    "hits": (5, 6, 8, 10, 12, 14, 16),
    "pT (GeV)": (0.2, 0.3, 0.5, 0.8, 1.5, 3.0),
    "abs(eta)": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    "vertex radius (mm)": (1, 3, 10, 30, 100, 300),
}
"""Where a bin ends and the next begins; the first and the last are open."""


class Found(NamedTuple):
    """Reconstructable particles in bins of one quantity."""

    num_found: Int64[np.ndarray, " bin"]
    """Those that a cluster matches."""
    num_all: Int64[np.ndarray, " bin"]


def found_particles(
    event: Event, hit_label: Int[np.ndarray, " hit"], min_hits: int = 4
) -> dict[str, Found]:
    """The reconstructable particles of an event, and those found by double majority.

    Args:
      event: the event, with truth.
      hit_label: cluster of each hit, negative for none.
      min_hits: as in `metrics.track_scores`.

    Returns:
      For each quantity of `EDGES` the particles in its bins.

    Raises:
      ValueError: the event has no truth, or the labels are not as many as the hits.
    """
    matching = match_tracks(event, hit_label, min_hits)
    is_found = np.zeros(len(matching.particle_size), bool)
    is_found[matching.particle[matching.particle != NOISE]] = True
    reconstructable = matching.particle_size >= min_hits
    vertex, momentum = event.particles.vertex, event.particles.momentum
    quantities = {
        "hits": matching.particle_size,
        "pT (GeV)": np.hypot(momentum[:, 0], momentum[:, 1]),
        "abs(eta)": np.abs(pseudorapidity(momentum.astype(np.float64))),
        "vertex radius (mm)": np.hypot(vertex[:, 0], vertex[:, 1]),
    }
    found = {}
    for name, value in quantities.items():
        place = np.searchsorted(EDGES[name], value, side="right")
        num_bins = len(EDGES[name]) + 1
        found[name] = Found(
            *(
                np.bincount(place[kind & reconstructable], minlength=num_bins)
                for kind in (is_found, True)
            )
        )
    return found


def both(first: Mapping[str, Found], second: Mapping[str, Found]) -> dict[str, Found]:
    """The particles of two events, or of two sets of them, together."""
    return {name: Found(*np.add(first[name], second[name])) for name in first}


def wilson_interval(found: Found) -> Float64[np.ndarray, "2 bin"]:
    """Lower and upper end of the efficiency, at one standard deviation.

    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209; inside [0, 1], where few particles are, too.
    Nothing is known of an empty bin: it has 0 and 1.
    """
    number = np.maximum(found.num_all, 1)
    share = found.num_found / number
    centre = (share + 0.5 / number) / (1 + 1 / number)
    half = np.sqrt(share * (1 - share) / number + 0.25 / number**2) / (1 + 1 / number)
    is_empty = found.num_all == 0
    return np.stack([np.where(is_empty, 0, centre - half), np.where(is_empty, 1, centre + half)])


def efficiency_table(found: Mapping[str, Found]) -> str:
    """One line per bin that has particles, in Markdown, with `wilson_interval`."""
    lines = ["| | | particles | efficiency |", "|---|---|--:|--:|"]
    for name, of in found.items():
        low, high = wilson_interval(of)
        for place, label in enumerate(bin_labels(name)):
            if of.num_all[place]:
                share = of.num_found[place] / of.num_all[place]
                ends = f"{share:.3f} (-{share - low[place]:.3f} +{high[place] - share:.3f})"
                lines.append(f"| {name} | {label} | {of.num_all[place]} | {ends} |")
    return "\n".join(lines)


def plot_efficiency(path: Path, found: Mapping[str, Found]) -> None:
    """Draws the efficiency in the bins of each quantity.

    Args:
      path: the file to write.
      found: what `found_particles` gives, of one event or of several.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    with saved_figure(path, 13.0, 9.0) as figure:
        panels = figure.subplots(2, 2, sharey=True)
        for axes, (name, of) in zip(panels.ravel(), found.items(), strict=True):
            place = np.flatnonzero(of.num_all)
            share = of.num_found[place] / of.num_all[place]
            low, high = wilson_interval(of)[:, place]
            axes.errorbar(
                place,
                share,
                yerr=[share - low, high - share],
                xerr=0.5,
                fmt="o",
                color=TRACK_COLOURS[0],
            )
            axes.set_xticks(range(len(of.num_all)), bin_labels(name), fontsize=13, rotation=30)
            axes.set_xlabel(name)
            axes.set_ylim(0, 1.05)
            axes.minorticks_off()
        for axes in panels[:, 0]:
            axes.set_ylabel("efficiency")


def bin_labels(name: str) -> list[str]:
    """What the bins of a quantity hold."""
    edges = [f"{edge:g}" for edge in EDGES[name]]
    inner = [f"{low} - {high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *inner, f"from {edges[-1]}"]
