"""Host side: the efficiency by number of hits, momentum, direction and origin of a particle."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.metrics import match_tracks, particle_matched
from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure
from hypertrack_jax.evaluation.tables import markdown_table
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.kinematics import pseudorapidity

BIN_EDGES = {
    "hits": (5, 6, 8, 10, 12, 14, 16),
    "pT (GeV)": (0.2, 0.3, 0.5, 0.8, 1.5, 3.0),
    "abs(eta)": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    "vertex radius (mm)": (1, 3, 10, 30, 100, 300),
}
"""Borders between bins. The first bin has no lower end and the last has no upper end."""
ONE_SIGMA = math.erf(math.sqrt(0.5))
"""Probability to be within one standard deviation."""


class BinnedEfficiency(NamedTuple):
    """Reconstructable particles in bins of one quantity."""

    num_found: Int64[np.ndarray, " bin"]
    """Those that a cluster matches."""
    num_all: Int64[np.ndarray, " bin"]


def binned_efficiency(
    event: Event, hit_label: ArrayLike, min_hits: int = 4
) -> dict[str, BinnedEfficiency]:
    """The reconstructable particles of an event, and those found by double majority.

    Args:
      event: the event, with truth.
      hit_label: cluster of each hit, as in `metrics.track_scores`.
      min_hits: the same.

    Returns:
      For each quantity of `BIN_EDGES` the particles in its bins.

    Raises:
      UserError: the event has no truth, or the labels are not one integer per hit.
    """
    matching = match_tracks(event, hit_label, min_hits)
    is_found = particle_matched(matching)
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
        place = np.searchsorted(BIN_EDGES[name], value, side="right")
        num_bins = len(BIN_EDGES[name]) + 1
        found[name] = BinnedEfficiency(
            *(
                np.bincount(place[kind & reconstructable], minlength=num_bins)
                for kind in (is_found, True)
            )
        )
    return found


def joint_efficiency(
    first: Mapping[str, BinnedEfficiency], second: Mapping[str, BinnedEfficiency]
) -> dict[str, BinnedEfficiency]:
    """The sum over two events, or over two sets of events."""
    return {name: BinnedEfficiency(*np.add(first[name], second[name])) for name in first}


def wilson_interval(num_found: int, num_all: int) -> tuple[float, float]:
    """Lower and upper end of an efficiency, at one standard deviation.

    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. It stays inside [0, 1] for few particles, too.
    """
    interval = binomtest(num_found, num_all).proportion_ci(ONE_SIGMA, method="wilson")
    return interval.low, interval.high


def efficiency_table(found: Mapping[str, BinnedEfficiency]) -> str:
    """One line per bin that has particles, in Markdown, with `wilson_interval`."""
    lines = []
    for name, of in found.items():
        for label, num_found, num_all in zip(
            bin_labels(name), of.num_found.tolist(), of.num_all.tolist(), strict=True
        ):
            if num_all:
                share = num_found / num_all
                low, high = wilson_interval(num_found, num_all)
                ends = f"{share:.3f} (-{share - low:.3f} +{high - share:.3f})"
                lines.append([name, label, str(num_all), ends])
    return markdown_table(["quantity", "bin", "particles", "efficiency"], lines, num_words=2)


def plot_efficiency(path: Path, found: Mapping[str, BinnedEfficiency]) -> None:
    """Draws the efficiency in the bins of each quantity.

    Args:
      path: the file to write.
      found: what `binned_efficiency` gives, of one event or of several.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      UserError: there are no particles.
      OSError: the file cannot be written.
    """
    if not any(of.num_all.any() for of in found.values()):
        raise UserError("an efficiency needs particles of enough hits, but there are none.")
    with saved_figure(path, 13.0, 9.0) as figure:
        panels = figure.subplots(2, 2, sharey=True)
        for axes, (name, of) in zip(panels.ravel(), found.items(), strict=True):
            place = np.flatnonzero(of.num_all)
            num_found, num_all = (number[place] for number in of)
            share = num_found / num_all
            low, high = np.transpose([*map(wilson_interval, num_found.tolist(), num_all.tolist())])
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
    """A label for each bin of a quantity."""
    edges = [f"{edge:g}" for edge in BIN_EDGES[name]]
    inner = [f"{low} - {high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *inner, f"from {edges[-1]}"]
