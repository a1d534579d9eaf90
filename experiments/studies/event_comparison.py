"""Host side: simulated events beside a real one, as numbers and as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.plots import NOISE_COLOUR, TRACK_COLOURS, saved_figure
from hypertrack_jax.events.event import NOISE, Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    # The tests check annotations at run time, where matplotlib may be missing.
    Axes = Any

DISPLACED_RADIUS = 0.1
"""Particles made further from the beam line than this, in mm, count as displaced."""
SIMULATED_COLOUR = TRACK_COLOURS[1]


class Sample(NamedTuple):
    """Particles and hits of one or more events taken together."""

    hits_per_particle: Int[np.ndarray, " particle"]
    """Number of hits of every particle, 0 included."""
    pt: Float[np.ndarray, " particle"]
    """Transverse momentum, in GeV."""
    eta: Float[np.ndarray, " particle"]
    """Pseudorapidity."""
    production_radius: Float[np.ndarray, " particle"]
    """Distance of the vertex from the beam line, in mm."""
    position: Float[np.ndarray, "hit 3"]
    """Measured positions, in mm."""
    volume: Int[np.ndarray, " hit"]
    """Volume of every hit."""
    is_noise: Bool[np.ndarray, " hit"]
    """True for noise hits."""


def sample_of(events: Sequence[Event]) -> Sample:
    """Puts the particles and hits of events with truth into one sample.

    Raises:
      UserError: there is no event, or one of them has no truth.
    """
    if not events:
        raise UserError("there is no event to compare; name at least one.")
    for event in events:
        if not event.has_truth:
            raise UserError(f"event {event.event_id} has no truth, so it cannot be compared.")
    momentum = np.concatenate([event.particles.momentum for event in events]).astype(np.float64)
    vertex = np.concatenate([event.particles.vertex for event in events])
    pt = np.hypot(momentum[:, 0], momentum[:, 1])
    return Sample(
        hits_per_particle=np.concatenate([event.particles.num_hits for event in events]),
        pt=pt,
        eta=np.arcsinh(momentum[:, 2] / pt),
        production_radius=np.hypot(vertex[:, 0], vertex[:, 1]),
        position=np.concatenate([event.position for event in events]),
        volume=np.concatenate([event.module[:, 0] for event in events]),
        is_noise=np.concatenate([event.hit_particle == NOISE for event in events]),
    )


def summarize(sample: Sample) -> dict[str, float]:
    """Numbers that do not depend on the size of the sample."""
    per_particle = 1 / len(sample.pt)
    return {
        "hits per particle": float(sample.hits_per_particle.mean()),
        "hits per particle with hits": float(
            sample.hits_per_particle[sample.hits_per_particle > 0].mean()
        ),
        "particles without hits": float((sample.hits_per_particle == 0).mean()),
        "median pT (GeV)": float(np.median(sample.pt)),
        "rms eta": float(np.sqrt((sample.eta**2).mean())),
        "displaced particles": float((sample.production_radius > DISPLACED_RADIUS).mean()),
        "noise ratio": float(sample.is_noise.mean()),
        **{
            f"hits per particle, volume {volume}": float(
                (sample.volume == volume).sum() * per_particle
            )
            for volume in np.unique(sample.volume)
        },
    }


def plot_comparison(path: Path, simulated: Sample, real: Sample) -> None:
    """Draws six distributions; the simulation is scaled to the real number of particles.

    Args:
      path: the file to write.
      simulated: any number of events, drawn as filled histograms.
      real: drawn as points with the statistical errors of their counts.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    pt_bins = np.geomspace(0.1, 10, 21)
    radius_bins = np.geomspace(1e-3, 1e3, 19)
    with saved_figure(path, width=19.0, height=11.0) as figure:
        axes = figure.subplots(2, 3).ravel()
        _draw_counts(axes[0], simulated, real, "hits_per_particle", np.arange(-0.5, 20.5))
        axes[0].set(xlabel="Hits per particle", ylabel="Particles", xlim=(-1, 20))
        _draw_counts(axes[1], simulated, real, "pt", pt_bins)
        axes[1].set(xlabel=r"$p_T$ [GeV]", ylabel="Particles", xscale="log", yscale="log")
        axes[1].set_ylim(bottom=0.3)
        _draw_counts(axes[2], simulated, real, "eta", np.linspace(-4, 4, 17))
        axes[2].set(xlabel=r"$\eta$", ylabel="Particles")
        _draw_counts(axes[3], simulated, real, "production_radius", radius_bins)
        axes[3].set(xlabel="Production radius [mm]", ylabel="Particles", xscale="log")
        axes[3].set_xlim(radius_bins[0], radius_bins[-1])
        _draw_positions(axes[4], simulated, real)
        _draw_noise(axes[5], simulated, real)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)


def _draw_counts(
    axes: Axes, simulated: Sample, real: Sample, field: str, bins: Float[np.ndarray, " edge"]
) -> None:
    scale = len(real.pt) / len(simulated.pt)
    expected, _ = np.histogram(getattr(simulated, field), bins)
    counts, _ = np.histogram(getattr(real, field), bins)
    axes.stairs(expected * scale, bins, fill=True, color=SIMULATED_COLOUR, label="Simulation")
    # The middle of a bin as drawn: geometric where the bins are.
    is_geometric = bins[0] > 0
    center = np.sqrt(bins[1:] * bins[:-1]) if is_geometric else (bins[1:] + bins[:-1]) / 2
    axes.errorbar(
        center[counts > 0],
        counts[counts > 0],
        np.sqrt(counts[counts > 0]),
        fmt="o",
        color="black",
        label="TrackML event",
    )
    top = max(1.0, expected.max() * scale, (counts + np.sqrt(counts)).max())
    axes.set_ylim(0, 1.25 * top)


def _draw_positions(axes: Axes, simulated: Sample, real: Sample) -> None:
    """Draws the real hits below the beam line and as many simulated ones above it."""
    step = max(1, len(simulated.position) // len(real.position))
    for position, sign, color in (
        (simulated.position[::step], 1, TRACK_COLOURS[0]),
        (real.position, -1, "black"),
    ):
        radius = np.hypot(position[:, 0], position[:, 1])
        axes.plot(position[:, 2] / 1e3, sign * radius / 1e3, ".", color=color, ms=2.5, mew=0)
    axes.axhline(0, color=NOISE_COLOUR, lw=1)
    axes.text(0, 1.1, "Simulation", ha="center", va="bottom", color=TRACK_COLOURS[0])
    axes.text(0, -1.1, "TrackML event", ha="center", va="top")
    axes.set(xlabel="z [m]", ylabel="r [m]", xlim=(-3.1, 3.1), ylim=(-1.35, 1.35))
    axes.set_yticks([-1, -0.5, 0, 0.5, 1], ["1", "0.5", "0", "0.5", "1"])


def _draw_noise(axes: Axes, simulated: Sample, real: Sample) -> None:
    volumes = np.unique(np.concatenate([simulated.volume, real.volume]))
    place = np.arange(len(volumes))
    in_volume = [sample.volume == volumes[:, None] for sample in (simulated, real)]
    expected, fraction = (
        (rows & sample.is_noise).sum(axis=1) / np.maximum(rows.sum(axis=1), 1)
        for rows, sample in zip(in_volume, (simulated, real), strict=True)
    )
    error = np.sqrt(fraction * (1 - fraction) / np.maximum(in_volume[1].sum(axis=1), 1))
    axes.bar(place, expected, width=0.85, color=SIMULATED_COLOUR)
    axes.errorbar(place, fraction, error, fmt="o", color="black")
    overall = simulated.is_noise.mean()
    axes.axhline(overall, color=NOISE_COLOUR, ls="--", zorder=0)
    axes.text(-1.4, overall, "all", va="bottom")
    axes.set_xlim(-1.5, len(volumes) - 0.3)
    axes.set(xlabel="Volume", ylabel="Part of the hits that is noise", xticks=place)
    axes.set_xticklabels([str(volume) for volume in volumes])
    axes.xaxis.set_minor_locator(_no_ticks())


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
