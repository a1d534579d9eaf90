"""Host side: how many edges each stage of a filter keeps at each efficiency, as a table and figure.

Only edges with a hit in the core of a sector count.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from hypertrack_jax.evaluation.filter_quality import DISPLACED, STAGES
from hypertrack_jax.evaluation.plots import saved_figure
from hypertrack_jax.events.sectors import Sector
from hypertrack_jax.networks.edge_filter import NUM_ROUNDS, FilterWeights
from hypertrack_jax.training.filter_training import most_neighbors, sector_pairs, stages_at
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics
from studies.graph_plots import LINE_COLOURS

NAMES: Mapping[str, str] = dict(zip(STAGES, ("pairs", "first round", "second round"), strict=True))
EFFICIENCIES = (0.9, 0.95, 0.97, 0.98, 0.99)
"""Efficiencies at which the table gives the share kept."""


class ScoredEdges(NamedTuple):
    """All raw edges, as one stage scores them."""

    logit: Float[np.ndarray, " edge"]
    """-inf for edges that an earlier stage took out."""
    is_true: Bool[np.ndarray, " edge"]
    radius: Float[np.ndarray, " edge"]
    """Distance of the particle's origin from the beam line, in mm; nan for false edges."""
    pt: Float[np.ndarray, " edge"]
    """Its transverse momentum in GeV."""
    eta: Float[np.ndarray, " edge"]
    """Its pseudorapidity."""


CLASSES: Mapping[str, Mapping[str, Callable[[ScoredEdges], Bool[np.ndarray, " edge"]]]] = {
    "Origin": {
        "within 1 mm": lambda edges: edges.radius < 1,
        "1 to 30 mm": lambda edges: (edges.radius >= 1) & (edges.radius < DISPLACED),
        "30 to 100 mm": lambda edges: (edges.radius >= DISPLACED) & (edges.radius < 100),
        "beyond 100 mm": lambda edges: edges.radius >= 100,
    },
    r"$p_T$": {
        "below 0.3 GeV": lambda edges: edges.pt < 0.3,
        "0.3 to 0.9 GeV": lambda edges: (edges.pt >= 0.3) & (edges.pt < 0.9),
        "above 0.9 GeV": lambda edges: edges.pt >= 0.9,
    },
    r"$\eta$": {
        r"$|\eta| < 1.5$": lambda edges: np.abs(edges.eta) < 1.5,
        r"$1.5 \leq |\eta| < 2.5$": lambda edges: (
            (np.abs(edges.eta) >= 1.5) & (np.abs(edges.eta) < 2.5)
        ),
        r"$|\eta| \geq 2.5$": lambda edges: np.abs(edges.eta) >= 2.5,
    },
}
"""Classes of true edges, by their particle."""


def scored_edges(
    sectors: Iterable[Sector], weights: FilterWeights, voxdyn: VoxelDynamics, tune: Tune
) -> dict[str, ScoredEdges]:
    """The raw edges of sectors as each stage scores them, after the stages before it."""
    found: dict[str, list[ScoredEdges]] = {stage: [] for stage in STAGES}
    for sector in sectors:
        of_sector = sector_pairs(*sector, voxdyn, tune)
        thresholds = list(weights.thresholds[:NUM_ROUNDS])
        stages = stages_at(most_neighbors(of_sector), weights, of_sector, thresholds)
        raw = stages[0]
        ends, event = np.stack([raw.one, raw.other])[:, : int(raw.number)], sector.event
        key = ends[0].astype(np.int64) * len(event.position) + ends[1]
        order = np.argsort(key)
        particle = event.hit_particle[ends]
        is_true = (particle[0] == particle[1]) & (particle[0] >= 0)
        of_particle = np.where(is_true, particle[0], 0)
        momentum, vertex = event.particles.momentum, event.particles.vertex
        pt, radius = (np.hypot(rows[:, 0], rows[:, 1]) for rows in (momentum, vertex))
        eta = np.arcsinh(momentum[:, 2] / pt)
        truth = (np.where(is_true, of[of_particle], np.nan) for of in (radius, pt, eta))
        radius, pt, eta = truth
        is_counted = sector.is_core[ends].any(axis=0)
        for stage, pairs in zip(STAGES, stages, strict=True):
            logit = np.full(ends.shape[1], -np.inf, np.float32)
            one, other, scores = (
                np.asarray(column)[: int(pairs.number)]
                for column in (pairs.one, pairs.other, pairs.logit)
            )
            left = one.astype(np.int64) * len(event.position) + other
            logit[order[np.searchsorted(key[order], left)]] = scores
            columns = logit, is_true, radius, pt, eta
            found[stage].append(ScoredEdges(*(column[is_counted] for column in columns)))
    return {
        stage: ScoredEdges(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for stage, parts in found.items()
    }


def curve(
    edges: ScoredEdges, is_wanted: Bool[np.ndarray, " edge"], num_points: int = 400
) -> Float[np.ndarray, "2 point"]:
    """Share of all edges that is kept, and share of the wanted true edges, for falling thresholds.

    The curve ends where earlier stages have taken out the rest.
    """
    falling = np.argsort(-edges.logit)
    falling = falling[edges.logit[falling] > -np.inf]
    wanted = is_wanted & edges.is_true
    efficiency = np.cumsum(wanted[falling]) / max(wanted.sum(), 1)
    kept = np.arange(1, len(falling) + 1) / len(edges.logit)
    chosen = np.unique(np.geomspace(1, len(falling), num_points).astype(int)) - 1
    return np.stack([kept[chosen], efficiency[chosen]])


def kept_at(edges: ScoredEdges, efficiencies: Sequence[float]) -> list[float]:
    """Smallest share of all edges that keeps these shares of the true ones; nan: out of reach."""
    falling = np.sort(edges.logit[edges.is_true])[::-1]
    shares = []
    for efficiency in efficiencies:
        threshold = falling[min(int(np.ceil(efficiency * len(falling))), len(falling)) - 1]
        is_reached = threshold > -np.inf
        shares.append(float((edges.logit >= threshold).mean()) if is_reached else np.nan)
    return shares


def plot_curves(path: Path, stages: Mapping[str, ScoredEdges]) -> None:
    """Draws efficiency against share kept: by stage, and after the last by class of particle.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    last = stages[STAGES[-1]]
    lines: dict[str, dict[str, Float[np.ndarray, "2 point"]]] = {
        "Stage": {NAMES[name]: curve(edges, edges.is_true) for name, edges in stages.items()}
    }
    for title, classes in CLASSES.items():
        lines[title] = {name: curve(last, of(last)) for name, of in classes.items()}
    with saved_figure(path, 16.0, 12.0) as figure:
        for axes, (title, of_panel) in zip(figure.subplots(2, 2).flat, lines.items(), strict=True):
            for colour, (name, points) in zip(LINE_COLOURS, of_panel.items(), strict=False):
                axes.plot(*points, color=colour, label=name)
            axes.set(xscale="log", xlim=(0.01, 1.0), ylim=(0.0, 1.02))
            axes.set(xlabel="Edges kept", ylabel="Edges of particles kept")
            axes.legend(loc="lower right", title=title)
