"""Host side: clusters of simulated events beside those of a real one, as numbers and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from hypertrack_jax.evaluation.plots import saved_figure
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.networks.cluster_shape import padded_clusters, shape_directions
from studies.event_comparison import SIMULATED_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    # The tests check annotations at run time, where matplotlib may be missing.
    Axes = Any

PIXEL_VOLUMES = (7, 8, 9)


class CellSample(NamedTuple):
    """The clusters of one or more events taken together; hits without cells are left out."""

    volume: Int[np.ndarray, " hit"]
    """Volume of every hit."""
    is_noise: Bool[np.ndarray, " hit"]
    """True for noise hits."""
    extent: Int[np.ndarray, "hit 2"]
    """Channels along u and v."""
    charge: Float[np.ndarray, " hit"]
    """Sum of the cells' values."""
    channels: Float[np.ndarray, "hit 2"]
    """Channels that the particle's own helix crosses; 0 for noise."""
    path: Float[np.ndarray, " hit"]
    """Length of the particle's path over the thickness of the module; 1 for noise."""
    angle: Float[np.ndarray, " hit"]
    """Angle in degrees between the particle's helix and the direction that the cluster suggests.
    For noise the line from the origin to the hit takes the place of the helix."""


def cell_sample_of(events: Sequence[Event]) -> CellSample | None:
    """Puts the clusters of events with truth into one sample; None where events have no cells."""
    parts = [_sample(event) for event in events if event.cells is not None]
    return CellSample(*map(np.concatenate, zip(*parts, strict=True))) if parts else None


def helix_directions(event: Event) -> Float[np.ndarray, "hit 3"]:
    """Directions of the particles at their hits, from vertex and momentum; any for noise.

    The azimuth of a circle's chord is the mean of those of the tangents at its ends. Scattering is
    left out.
    """
    vertex = np.append(event.particles.vertex, np.zeros((1, 3)), axis=0)[event.hit_particle]
    momentum = np.append(event.particles.momentum, np.ones((1, 3)), axis=0)[event.hit_particle]
    chord = event.position - vertex
    azimuth = 2 * np.arctan2(chord[:, 1], chord[:, 0]) - np.arctan2(momentum[:, 1], momentum[:, 0])
    pt = np.hypot(momentum[:, 0], momentum[:, 1])
    return np.stack([pt * np.cos(azimuth), pt * np.sin(azimuth), momentum[:, 2]], axis=1)


def summarize_cells(sample: CellSample) -> dict[str, tuple[float, ...]]:
    """By volume, for particle hits and for noise: what a table row shows."""
    rows = {}
    for volume in np.unique(sample.volume):
        for name, is_kind in (("particles", ~sample.is_noise), ("noise", sample.is_noise)):
            here = is_kind & (sample.volume == volume)
            if not here.any():
                continue
            extent = sample.extent[here]
            rows[f"{volume}, {name}"] = (
                *extent.mean(axis=0).tolist(),
                *(extent == 1).mean(axis=0).tolist(),
                float((sample.charge / sample.path)[here].mean()),
                float(np.median(sample.angle[here])),
            )
    return rows


def cell_table(simulated: CellSample, real: CellSample) -> list[list[str]]:
    """Rows of volume and kind: each number of the simulation, and of the real event."""
    found, expected = summarize_cells(simulated), summarize_cells(real)
    return [
        [name, *(f"{one:.3f} / {other:.3f}" for one, other in zip(found[name], row, strict=True))]
        for name, row in expected.items()
        if name in found
    ]


CELL_HEADER = [
    "volume, hits (simulated / real)",
    "extent along u",
    "extent along v",
    "one channel along u",
    "one channel along v",
    "charge over path",
    "median angle (degrees)",
]


def plot_cells(path: Path, simulated: CellSample, real: CellSample) -> None:
    """Draws extents and charge; the simulation filled, the real event as points with errors.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    with saved_figure(path, width=19.0, height=11.0) as figure:
        axes = figure.subplots(2, 3)
        for row, (name, is_in) in enumerate(
            (("pixels", _is_pixel), ("strips", lambda sample: ~_is_pixel(sample)))
        ):
            one, other = (_chosen(sample, is_in(sample)) for sample in (simulated, real))
            axis = 1 - row
            label = "v" if axis else "u"
            _draw_extents(axes[row, 0], one, other, axis)
            axes[row, 0].set(xlabel=f"Extent along {label}, {name} [channels]", ylabel="Clusters")
            _draw_profile(axes[row, 1], one, other, axis)
            axes[row, 1].set(
                xlabel=f"Channels crossed along {label}, {name}", ylabel="Mean extent [channels]"
            )
        _draw_charge(axes[0, 2], *(_chosen(s, _is_pixel(s)) for s in (simulated, real)))
        axes[0, 2].set(xlabel="Charge over path, pixels [mm]", ylabel="Clusters")
        _draw_singles(axes[1, 2], simulated, real)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)


def _sample(event: Event) -> CellSample:
    cells = event.cells
    assert cells is not None
    crossed = np.einsum("hij,hj->hi", cells.frame.astype(np.float64), helix_directions(event))
    is_noise = event.hit_particle == NOISE
    with np.errstate(divide="ignore", invalid="ignore"):
        channels = np.abs(crossed[:, :2] / crossed[:, 2:])
        path = np.linalg.norm(helix_directions(event), axis=1) / np.abs(crossed[:, 2])
    has_cells = cells.num_cells > 0
    expected = np.where(is_noise[:, None], event.position, helix_directions(event))
    suggested = np.asarray(_suggested(padded_clusters(cells, len(is_noise)), event.position))
    cosine = (expected * suggested).sum(axis=1) / np.linalg.norm(expected, axis=1)
    return CellSample(
        volume=event.module[has_cells, 0],
        is_noise=is_noise[has_cells],
        extent=cells.extent[has_cells],
        charge=cells.charge[has_cells].astype(np.float64),
        channels=np.where(is_noise[:, None], 0, channels)[has_cells],
        path=np.where(is_noise, 1, path)[has_cells],
        angle=np.degrees(np.arccos(np.clip(cosine, -1, 1)))[has_cells],
    )


_suggested = jax.jit(shape_directions)


def _is_pixel(sample: CellSample) -> np.ndarray:
    return np.isin(sample.volume, PIXEL_VOLUMES)


def _chosen(sample: CellSample, chosen: np.ndarray) -> CellSample:
    return CellSample(*(field[chosen] for field in sample))


def _draw_extents(axes: Axes, simulated: CellSample, real: CellSample, axis: int) -> None:
    _draw_counts(axes, simulated.extent[:, axis], real.extent[:, axis], np.arange(0.5, 26.5))
    axes.set(yscale="log", ylim=(0.5, None))


def _draw_charge(axes: Axes, simulated: CellSample, real: CellSample) -> None:
    found, expected = (s.charge[~s.is_noise] / s.path[~s.is_noise] for s in (simulated, real))
    _draw_counts(axes, found, expected, np.linspace(0, 0.5, 41))


def _draw_counts(axes: Axes, simulated: np.ndarray, real: np.ndarray, bins: np.ndarray) -> None:
    counts, _ = np.histogram(real, bins)
    expected = np.histogram(simulated, bins)[0] * (len(real) / max(1, len(simulated)))
    axes.stairs(expected, bins, fill=True, color=SIMULATED_COLOUR, label="Simulation")
    center, is_filled = (bins[1:] + bins[:-1]) / 2, counts > 0
    points = center[is_filled], counts[is_filled], np.sqrt(counts[is_filled])
    axes.errorbar(*points, fmt="o", color="black", label="TrackML event")
    axes.set_ylim(0, 1.2 * max(1.0, float(expected.max()), float(counts.max())))


def _draw_profile(axes: Axes, simulated: CellSample, real: CellSample, axis: int) -> None:
    """The mean extent against the channels that the particle's helix crosses."""
    bins = np.concatenate([np.linspace(0, 4, 9), np.linspace(6, 24, 7)])
    center = (bins[1:] + bins[:-1]) / 2
    for sample, color in (
        (simulated, SIMULATED_COLOUR),
        (real, "black"),
    ):
        is_particle = ~sample.is_noise
        extent, of = sample.extent[is_particle, axis], sample.channels[is_particle, axis]
        bin_of = np.digitize(of, bins) - 1
        rows = [extent[bin_of == index] for index in range(len(center))]
        is_filled = np.array([len(row) > 2 for row in rows], bool)
        mean = [row.mean() for row in rows if len(row) > 2]
        error = [row.std(ddof=1) / len(row) ** 0.5 for row in rows if len(row) > 2]
        fmt = "o" if sample is real else "-"
        axes.errorbar(center[is_filled], mean, error, fmt=fmt, color=color, lw=3)
    axes.plot([0, 24], [1, 25], ":", color="black", lw=1)
    axes.set_ylim(0, 27)


def _draw_singles(axes: Axes, simulated: CellSample, real: CellSample) -> None:
    """The share of clusters of particles with one channel along u, by volume."""
    volumes = np.unique(real.volume)
    place = np.arange(len(volumes))
    share, error = [], []
    for sample in (simulated, real):
        rows = [
            sample.extent[(sample.volume == volume) & ~sample.is_noise, 0] == 1
            for volume in volumes
        ]
        share.append([row.mean() if len(row) else 0.0 for row in rows])
        error.append([row.std(ddof=1) / len(row) ** 0.5 if len(row) > 1 else 0.0 for row in rows])
    axes.bar(place, share[0], width=0.85, color=SIMULATED_COLOUR)
    axes.errorbar(place, share[1], error[1], fmt="o", color="black")
    axes.set(xlabel="Volume", ylabel="Part with one channel along u", xticks=place, ylim=(0, 1))
    axes.set_xticklabels([str(volume) for volume in volumes])
