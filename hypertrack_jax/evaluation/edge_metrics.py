"""Host side: how good the edge scores and the candidate graph of one event are.

A score is a plain number, or None for a ratio over nothing, as in `metrics`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.metrics import ratio


class EdgeScores(NamedTuple):
    """How well a score separates true from false edges."""

    tpr: float | None
    """True edges above the threshold over all true edges."""
    fpr: float | None
    """False edges above the threshold over all false edges."""
    auc: float | None
    """Area under the ROC curve, whatever the threshold."""


class RocCurve(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1)."""

    fpr: Float64[np.ndarray, " point"]
    """False positive rate, never falling."""
    tpr: Float64[np.ndarray, " point"]
    """True positive rate, never falling."""


class GraphScores(NamedTuple):
    """The candidate graph against the true adjacency of the event."""

    tpr: float | None
    """True edges among the candidates over all true edges."""
    fpr: float | None
    """False candidates over all ordered pairs of hits that are no true edge."""
    purity: float | None
    """True candidates over all candidates."""
    mean_degree: float | None
    """Candidates per hit."""


def edge_scores(
    label: Bool[np.ndarray, " edge"],
    score: Float[np.ndarray, " edge"],
    threshold: float,
    mask: Bool[np.ndarray, " edge"] | None = None,
) -> EdgeScores:
    """Scores an edge classifier.

    Args:
      label: True for a true edge.
      score: higher for an edge that is more likely true.
      threshold: an edge is called true when its score is above it.
      mask: True for the edges to count; all when None.

    Returns:
      The scores; a rate over no edge is None.

    Raises:
      UserError: a score is NaN.
    """
    if mask is not None:
        label, score = label[mask], score[mask]
    called_true = score > threshold
    return EdgeScores(
        tpr=ratio(np.count_nonzero(called_true & label), np.count_nonzero(label)),
        fpr=ratio(np.count_nonzero(called_true & ~label), np.count_nonzero(~label)),
        auc=auc(label, score),
    )


def auc(label: Bool[np.ndarray, " edge"], score: Float[np.ndarray, " edge"]) -> float | None:
    """Area under the ROC curve, exact.

    The probability that a true edge scores above a false one, a tie counting one half: the
    Mann-Whitney U statistic over the number of pairs (Hanley and McNeil, Radiology 143 (1982) 29).

    Args:
      label: True for a true edge.
      score: higher for an edge that is more likely true.

    Returns:
      The area, or None when all edges are true or all false.

    Raises:
      UserError: a score is NaN.
    """
    num_true, num_false = _cumulative_counts(label, score)
    # Twice the area of the trapezia is a whole number, so only the division rounds.
    twice_area = np.sum(np.diff(num_false) * (num_true[1:] + num_true[:-1]))
    return ratio(twice_area, 2 * num_true[-1] * num_false[-1])


def roc_curve(
    label: Bool[np.ndarray, " edge"], score: Float[np.ndarray, " edge"], num_points: int = 1000
) -> RocCurve:
    """ROC curve, thinned to at most `num_points` of its own points.

    The points are evenly spaced in fpr + tpr. So the steep part of a good classifier's curve keeps
    as many points as the flat part.

    Args:
      label: True for a true edge.
      score: higher for an edge that is more likely true.
      num_points: largest number of points, at least 2.

    Returns:
      The curve, its end points included.

    Raises:
      UserError: a score is NaN, or all edges are true or all false.
    """
    num_true, num_false = _cumulative_counts(label, score)
    if num_true[-1] == 0 or num_false[-1] == 0:
        raise UserError(
            f"a ROC curve needs true and false edges, but there are {num_true[-1]} true and "
            f"{num_false[-1]} false ones; take an event or a graph that has both."
        )
    tpr, fpr = num_true / num_true[-1], num_false / num_false[-1]
    kept = np.unique(np.searchsorted(tpr + fpr, np.linspace(0.0, 2.0, num_points)))
    return RocCurve(fpr=fpr[kept], tpr=tpr[kept])


def graph_scores(
    num_hits: int, num_truth_edges: int, label: Bool[np.ndarray, " edge"]
) -> GraphScores:
    """Scores a candidate graph from the labels of its edges; needs no adjacency matrix.

    Args:
      num_hits: number of hits of the event.
      num_truth_edges: number of directed true edges of the event, self-loops included where
        `label` has them.
      label: True for a candidate edge that is a true edge; directed edges, each once.

    Returns:
      The scores; a ratio over nothing is None.
    """
    num_true = np.count_nonzero(label)
    num_false = len(label) - num_true
    return GraphScores(
        tpr=ratio(num_true, num_truth_edges),
        fpr=ratio(num_false, num_hits**2 - num_truth_edges),
        purity=ratio(num_true, len(label)),
        mean_degree=ratio(len(label), num_hits),
    )


def _cumulative_counts(
    label: Bool[np.ndarray, " edge"], score: Float[np.ndarray, " edge"]
) -> tuple[Int64[np.ndarray, " point"], Int64[np.ndarray, " point"]]:
    """Numbers of true and of false edges at or above each distinct score.

    Returns:
      Two arrays that begin with 0, for a threshold above all scores, and end with the totals.
    """
    num_nan = np.count_nonzero(np.isnan(score))
    if num_nan:
        raise UserError(
            f"{num_nan} of {len(score)} edge scores are NaN; the network that gave them has "
            "diverged: go back to an earlier checkpoint or train with a lower learning rate."
        )
    order = np.argsort(score)[::-1]
    falling = score[order]
    # One point for each run of equal scores, which have no order among themselves.
    ends_run = np.append(falling[:-1] != falling[1:], True) if len(falling) else np.zeros(0, bool)
    num_true = np.cumsum(label[order], dtype=np.int64)[ends_run]
    num_edges = np.arange(1, len(score) + 1)[ends_run]
    return np.append(0, num_true), np.append(0, num_edges - num_true)
