"""Host side: efficiency and fake rate by number of hits, momentum, direction and origin.

A fake has no particle, so tracks are binned by what their own hits tell, see `track_shapes`.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.metrics import match_tracks, particle_matched
from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure
from hypertrack_jax.evaluation.tables import markdown_table
from hypertrack_jax.evaluation.track_shapes import track_shapes
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.events.kinematics import pseudorapidity

BIN_EDGES = {
    "hits": (5, 6, 8, 10, 12, 14, 16),
    "pT (GeV)": (0.2, 0.3, 0.5, 0.8, 1.5, 3.0),
    "abs(eta)": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    "vertex radius (mm)": (1, 3, 10, 30, 100, 300),
    "impact parameter (mm)": (1, 3, 10, 30, 100, 300),
}
"""Borders between bins. The first bin has no lower end and the last has no upper end."""
ONE_SIGMA = math.erf(math.sqrt(0.5))
"""Probability to be within one standard deviation."""


class BinnedRatio(NamedTuple):
    """Particles or tracks in bins of one quantity."""

    num_passed: Int64[np.ndarray, " bin"]
    """Particles that a track matches, or tracks that match no particle."""
    num_all: Int64[np.ndarray, " bin"]


def binned_efficiency(
    event: Event, hit_label: ArrayLike, min_hits: int = 4
) -> dict[str, BinnedRatio]:
    """The reconstructable particles of an event, and those found by double majority.

    Args:
      event: the event, with truth.
      hit_label: cluster of each hit, as in `metrics.track_scores`.
      min_hits: as in `metrics.track_scores`.

    Returns:
      For each quantity the particles in the bins of `BIN_EDGES`.

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
    return {
        name: _binned(name, value[reconstructable], is_found[reconstructable])
        for name, value in quantities.items()
    }


def binned_fakes(event: Event, hit_label: ArrayLike, min_hits: int = 4) -> dict[str, BinnedRatio]:
    """The tracks of an event, and those that match no particle by double majority.

    Args:
      event: the event, with truth.
      hit_label: track of each hit, as in `metrics.track_scores`.
      min_hits: as in `metrics.track_scores`.

    Returns:
      For each quantity of `track_shapes` the tracks in the bins of `BIN_EDGES`.

    Raises:
      UserError: the event has no truth, or the labels are not one integer per hit.
    """
    matching = match_tracks(event, hit_label, min_hits)
    is_fake = matching.particle == NOISE
    shapes = track_shapes(event.position, matching.hit_cluster)
    return {name: _binned(name, value, is_fake) for name, value in shapes.items()}


def joint_ratios(
    first: Mapping[str, BinnedRatio], second: Mapping[str, BinnedRatio]
) -> dict[str, BinnedRatio]:
    """The sum over two events, or over two sets of events."""
    return {name: BinnedRatio(*np.add(first[name], second[name])) for name in first}


def wilson_interval(num_passed: int, num_all: int) -> tuple[float, float]:
    """Lower and upper end of Wilson's interval of a ratio, at one standard deviation.

    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. It stays inside [0, 1] for few particles, too.
    """
    interval = binomtest(num_passed, num_all).proportion_ci(ONE_SIGMA, method="wilson")
    return interval.low, interval.high


def efficiency_table(found: Mapping[str, BinnedRatio]) -> str:
    """One line per bin that has particles, in Markdown, with `wilson_interval`."""
    lines = []
    for name, of in found.items():
        for label, num_passed, num_all in zip(
            bin_labels(name), of.num_passed.tolist(), of.num_all.tolist(), strict=True
        ):
            if num_all:
                share = num_passed / num_all
                low, high = wilson_interval(num_passed, num_all)
                ends = f"{share:.3f} (-{share - low:.3f} +{high - share:.3f})"
                lines.append([name, label, str(num_all), ends])
    return markdown_table(["quantity", "bin", "particles", "efficiency"], lines, num_words=2)


def plot_ratios(
    path: Path, programs: Mapping[str, Mapping[str, BinnedRatio]], what: str = "efficiency"
) -> None:
    """Draws a ratio in the bins of each quantity, of several programs beside each other.

    Args:
      path: the file to write.
      programs: by name what `binned_efficiency` or `binned_fakes` gives, of one event or of the sum
        of several.
      what: name of the ratio.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      UserError: there is nothing in any bin.
      OSError: the file cannot be written.
    """
    if not any(of.num_all.any() for ratios in programs.values() for of in ratios.values()):
        raise UserError(f"{what}: no particle or track has enough hits; take more events.")
    first, *_ = programs.values()
    with saved_figure(path, 13.0, 9.0) as figure:
        panels = figure.subplots(2, 2, sharey=True)
        for axes, name in zip(panels.ravel(), first, strict=True):
            for number, (program, ratios) in enumerate(programs.items()):
                # Side by side, so that the intervals can be told apart.
                shift = 0.12 * (number - (len(programs) - 1) / 2)
                _draw_ratio(axes, ratios[name], shift, TRACK_COLOURS[3 * number % 7], program)
            axes.set_xticks(range(len(bin_labels(name))), bin_labels(name), size=13, rotation=30)
            axes.set_xlabel(name)
            axes.set_xlim(-0.7, len(bin_labels(name)) - 0.3)
            axes.minorticks_off()
        # A ratio near 1 shows what is missing; a small one takes the height that it needs.
        panels[0, 0].set_ylim(0, 1.05 if panels[0, 0].get_ylim()[1] > 0.6 else None)
        for axes in panels[:, 0]:
            axes.set_ylabel(what)
        if len(programs) > 1:
            handles, names = panels[0, 0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=len(programs))


def bin_labels(name: str) -> list[str]:
    """A label for each bin of a quantity."""
    edges = [f"{edge:g}" for edge in BIN_EDGES[name]]
    inner = [f"{low} - {high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *inner, f"from {edges[-1]}"]


def _binned(
    name: str,
    value: Float[np.ndarray, " one"] | Integer[np.ndarray, " one"],
    is_passed: Bool[np.ndarray, " one"],
) -> BinnedRatio:
    place = np.searchsorted(BIN_EDGES[name], value, side="right")
    num_bins = len(BIN_EDGES[name]) + 1
    chosen = (np.bincount(place[kind], minlength=num_bins) for kind in (is_passed, slice(None)))
    return BinnedRatio(*chosen)


def _draw_ratio(axes: Any, of: BinnedRatio, shift: float, colour: str, program: str) -> None:
    """The ratio and its interval in each bin that holds anything."""
    place = np.flatnonzero(of.num_all)
    num_passed, num_all = (number[place] for number in of)
    share = num_passed / num_all
    ends = [
        wilson_interval(*pair) for pair in zip(num_passed.tolist(), num_all.tolist(), strict=True)
    ]
    low, high = np.reshape(ends, (-1, 2)).T
    axes.errorbar(
        place + shift,
        share,
        yerr=[share - low, high - share],
        xerr=0.5,
        fmt="o",
        color=colour,
        label=program,
    )
