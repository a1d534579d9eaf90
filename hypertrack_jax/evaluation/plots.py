"""Host side: figures of events and of scores; needs the extra `plots`.

matplotlib is imported when a figure is drawn, so everything else works without it. Only its object
interface is used, so no global figure stays open. The suffix of a file decides its format: .png
(also without a suffix), .pdf or .svg.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy.typing import ArrayLike

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.edge_metrics import auc, roc_curve
from hypertrack_jax.evaluation.metrics import NO_CLUSTER, Matching, match_tracks
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    # The tests check annotations at run time, where matplotlib may be missing.
    Axes = Figure = Any

TRACK_COLOURS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#AA4499")
"""The scheme `muted` of P. Tol (https://personal.sron.nl/~pault) without its two reds. Colour-blind
readers can tell these colours apart."""
MISTAKE_COLOUR = "#CC3311"
"""Red marks mistakes and nothing else."""
NOISE_COLOUR = "#BBBBBB"


def plot_event(
    path: Path,
    event: Event,
    hit_label: ArrayLike,
    edges: Int[np.ndarray, "2 edge"] | None = None,
    min_hits: int = 4,
) -> None:
    """Draws an event in the x-y and r-z planes, with true tracks left and found tracks right.

    A found track has the colour of the particle that it matches by double majority. Mistakes are
    red: a ring around a missed hit, a cross on a hit in a wrong track, and a dashed line along a
    track that matches no particle.

    Args:
      path: the file to write.
      event: the event, with truth.
      hit_label: cluster of each hit, as in `metrics.track_scores`.
      edges: pairs of hits to draw as thin lines beneath the found tracks.
      min_hits: fewest hits of a particle that should be found, and of a cluster that can match.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      UserError: the event has no truth, or the labels are not one integer per hit.
      OSError: the file cannot be written.
    """
    matching = match_tracks(event, hit_label, min_hits)
    planes = {
        ("$x$ [mm]", "$y$ [mm]"): event.position[:, :2],
        ("$z$ [mm]", "$r$ [mm]"): np.stack(
            [event.position[:, 2], np.hypot(event.position[:, 0], event.position[:, 1])], axis=1
        ),
    }
    with saved_figure(path, width=13.0, height=11.5) as figure:
        panels = figure.subplots(2, 2, sharex="row", sharey="row", height_ratios=[2.0, 1.0])
        for (true_panel, found_panel), ((x_label, y_label), point) in zip(
            panels, planes.items(), strict=True
        ):
            _draw_truth(true_panel, event, matching, point, min_hits)
            _draw_found(found_panel, event, matching, point, edges, min_hits)
            true_panel.set(xlabel=x_label, ylabel=y_label)
            found_panel.set(xlabel=x_label)
        reach_x, reach_y, reach_z = np.maximum(1.05 * np.abs(event.position).max(axis=0), 1.0)
        reach = max(reach_x, reach_y)
        panels[0, 0].set(xlim=(-reach, reach), ylim=(-reach, reach))
        # More labels in z would overlap with those of the other panel.
        panels[1, 0].locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
        panels[1, 0].set(xlim=(-reach_z, reach_z), ylim=(0.0, reach))
        for panel in panels[0]:
            panel.set_box_aspect(1)
        num_matched = np.count_nonzero(matching.particle != NOISE)
        num_true = np.count_nonzero(matching.particle_size >= min_hits)
        panels[0, 0].set_title(f"Event {event.event_id}: {num_true} true tracks", size=18)
        panels[0, 1].set_title(f"{len(matching.particle)} found, {num_matched} matched", size=18)
        _draw_legend(figure, panels[0, 1])


def plot_edge_scores(
    path: Path,
    label: Bool[np.ndarray, " edge"],
    probability: Float[np.ndarray, " edge"],
    edge_threshold: float | None = None,
) -> None:
    """Draws the distribution of the edge probability, of true and of false edges.

    Args:
      path: the file to write.
      label: True for a true edge.
      probability: probability of each edge to be true.
      edge_threshold: probability to mark with a line.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      UserError: there are no edges.
      OSError: the file cannot be written.
    """
    if not len(label):
        raise UserError("edge scores need candidate edges, but there are none.")
    bins = np.linspace(0.0, 1.0, 51)
    with saved_figure(path, width=8.0, height=6.0) as figure:
        axes = figure.subplots()
        for name, chosen, colour, fill in (
            ("False edges", ~label, TRACK_COLOURS[5], True),
            ("True edges", label, TRACK_COLOURS[0], False),
        ):
            count, _ = np.histogram(probability[chosen], bins)
            axes.stairs(
                count, bins, color=colour, fill=fill, lw=2, label=f"{name} ({chosen.sum():,})"
            )
        if edge_threshold is not None:
            axes.axvline(
                edge_threshold, color="black", ls="--", lw=1.5, label=f"Cut at {edge_threshold:g}"
            )
        axes.set(xlabel="Edge probability", ylabel=f"Edges per {bins[1]:g}", yscale="log")
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(bottom=0.5)
        figure.legend(loc="outside upper center", ncols=3)


def plot_roc(
    path: Path,
    classifiers: Mapping[str, tuple[Bool[np.ndarray, "_"], Float[np.ndarray, "_"]]],
) -> None:
    """Draws ROC curves of edge classifiers, the false positive rate on a logarithmic axis.

    Args:
      path: the file to write.
      classifiers: for each name in the legend, the label and the score of each edge.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      UserError: a score is NaN, or all edges are true or all false.
      OSError: the file cannot be written.
    """
    curves = {name: roc_curve(label, score) for name, (label, score) in classifiers.items()}
    with saved_figure(path, width=8.0, height=6.5) as figure:
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(
                curve.fpr,
                curve.tpr,
                color=TRACK_COLOURS[number % len(TRACK_COLOURS)],
                ls=("-", "--", ":")[number % 3],
                label=f"{name} (AUC {auc(*classifiers[name]):.4f})",
            )
        chance = np.logspace(-4, 0, 200)
        axes.plot(chance, chance, color="grey", ls="-.", lw=1, label="Chance (AUC 0.5)")
        axes.set(xlabel="False positive rate", ylabel="True positive rate", xscale="log")
        axes.set(xlim=(chance[0], 1.0), ylim=(0.0, 1.02))
        axes.legend(loc="lower left")


@contextlib.contextmanager
def saved_figure(path: Path, width: float, height: float) -> "Iterator[Figure]":
    """A figure of `width` by `height` inches, saved if the block ends without an error.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    try:
        import matplotlib
        import mplhep
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: drawing needs {error.name}, which is not installed; "
            "run pip install 'hypertrack-jax[plots]'."
        ) from error
    style: dict[Any, Any] = mplhep.style.ATLAS
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replace_file(path) as file:
            figure.savefig(file, format=path.suffix[1:] or "png", dpi=120)


def _draw_truth(
    axes: Axes,
    event: Event,
    matching: Matching,
    point: Float[np.ndarray, "hit 2"],
    min_hits: int,
) -> None:
    """The hits of every particle of at least `min_hits`, joined; the other hits grey."""
    is_track = _is_wanted(event, matching, min_hits)
    _draw_noise(axes, point[~is_track])
    _draw_tracks(axes, event, point, np.where(is_track, event.hit_particle, NOISE))


def _draw_found(
    axes: Axes,
    event: Event,
    matching: Matching,
    point: Float[np.ndarray, "hit 2"],
    edges: Int[np.ndarray, "2 edge"] | None,
    min_hits: int,
) -> None:
    """The clusters, joined, and their mistakes; each hit has one mark."""
    in_cluster = matching.hit_cluster != NO_CLUSTER
    found = np.full(len(point), NOISE, np.int64)
    found[in_cluster] = matching.particle[matching.hit_cluster[in_cluster]]
    is_right = (found != NOISE) & (found == event.hit_particle)
    is_missed = _is_wanted(event, matching, min_hits) & ~in_cluster
    if edges is not None:
        ends = np.append(point[edges.T], np.full((edges.shape[1], 1, 2), np.nan), axis=1)
        axes.plot(*ends.reshape(-1, 2).T, color=NOISE_COLOUR, lw=0.4, zorder=1, label="edge")
    _draw_noise(axes, point[~in_cluster & ~is_missed])
    _draw_tracks(axes, event, point, np.where(is_right, event.hit_particle, NOISE))
    fake = np.where(in_cluster & (found == NOISE), matching.hit_cluster, NOISE)
    axes.plot(
        *_joined(event, point, fake).T,
        color=MISTAKE_COLOUR,
        ls="--",
        lw=1.0,
        zorder=3,
        label="track without a particle",
    )
    size = _marker_size(len(point))
    axes.plot(
        *point[in_cluster & ~is_right].T,
        "x",
        color=MISTAKE_COLOUR,
        ms=2.0 * size,
        mew=1.5,
        zorder=4,
        label="hit in a wrong track",
    )
    axes.plot(
        *point[is_missed].T,
        "o",
        mfc="none",
        mec=MISTAKE_COLOUR,
        ms=1.7 * size,
        mew=1.2,
        zorder=4,
        label="missed hit",
    )


def _draw_noise(axes: Axes, point: Float[np.ndarray, "hit 2"]) -> None:
    axes.plot(
        *point.T, "o", color=NOISE_COLOUR, ms=2.5, mew=0, zorder=1, label="noise or short track"
    )


def _draw_tracks(
    axes: Axes,
    event: Event,
    point: Float[np.ndarray, "hit 2"],
    hit_particle: Integer[np.ndarray, " hit"],
) -> None:
    """Joins the hits of each particle; neighbours in azimuth have different colours."""
    momentum = event.particles.momentum
    place = np.argsort(np.argsort(np.arctan2(momentum[:, 1], momentum[:, 0])))
    # The last entry serves hits of no particle, whose index is -1.
    colour = np.append(place % len(TRACK_COLOURS), NOISE)[hit_particle]
    for number, name in enumerate(TRACK_COLOURS):
        chosen = np.where(colour == number, hit_particle, NOISE)
        axes.plot(
            *_joined(event, point, chosen).T,
            "o-",
            color=name,
            lw=1.0,
            ms=_marker_size(len(point)),
            mew=0,
            zorder=2,
            label="matched track",
        )


def _joined(
    event: Event, point: Float[np.ndarray, "hit 2"], group: Integer[np.ndarray, " hit"]
) -> Float[np.ndarray, "vertex 2"]:
    """Points of each group (-1 is none) from the origin outwards, NaN between the groups."""
    distance = np.linalg.norm(event.position, axis=1)
    order = np.lexsort([distance, group])
    order = order[group[order] != NOISE]
    begins = np.flatnonzero(np.diff(group[order])) + 1
    return np.insert(point[order], begins, np.nan, axis=0)


def _is_wanted(event: Event, matching: Matching, min_hits: int) -> Bool[np.ndarray, " hit"]:
    """Whether each hit is of a particle with at least `min_hits` hits."""
    return np.append(matching.particle_size >= min_hits, False)[event.hit_particle]


def _marker_size(num_hits: int) -> float:
    """Marker diameter in points. It is small enough to keep the hits of an event apart."""
    return float(np.clip(100.0 / np.sqrt(num_hits), 1.0, 4.0))


def _draw_legend(figure: Figure, axes: Axes) -> None:
    """One entry per kind of mark below the panels, the marks in one readable size."""
    # Only one entry for matched tracks, in the last of their colours.
    kinds = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend = figure.legend(
        kinds.values(),
        kinds.keys(),
        loc="outside lower center",
        ncols=len(kinds),
        columnspacing=1.5,
    )
    for mark in filter(None, legend.legend_handles):
        mark.set(markersize=7.0)
