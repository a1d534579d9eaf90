"""Scores of edges and of candidate graphs, by hand and against pairs and dense matrices."""

import numpy as np
import pytest

from hypertrack_jax.evaluation.edge_metrics import (
    EdgeScores,
    GraphScores,
    auc,
    edge_scores,
    graph_scores,
    roc_curve,
)


def auc_by_pairs(label, score):
    """The probability that a true edge beats a false one, over all pairs."""
    margin = score[label][:, None] - score[~label][None, :]
    return np.mean(np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0)))


@pytest.mark.parametrize("num_levels", [1, 2, 5, 1000])
def test_auc_equals_the_count_over_all_pairs_with_ties(num_levels):
    rng = np.random.default_rng(num_levels)
    label = rng.random(300) < 0.3
    score = rng.integers(0, num_levels, 300) / num_levels + 0.2 * label * (num_levels == 1000)
    assert auc(label, score) == pytest.approx(auc_by_pairs(label, score), abs=1e-14)


def test_edge_scores_by_hand():
    label = np.array([True, True, True, False, False, False, True])
    score = np.array([0.9, 0.5, 0.2, 0.5, 0.4, 0.1, 1.0], np.float32)
    mask = np.array([True] * 6 + [False])
    # At the threshold is not above it. Pairs won: 3, 2 and a tie, 1.
    expected = EdgeScores(tpr=1 / 3, fpr=0.0, auc=6.5 / 9)
    assert edge_scores(label, score, 0.5, mask) == expected
    assert edge_scores(label, score, 0.3) == EdgeScores(3 / 4, 2 / 3, 9.5 / 12)


def test_edge_scores_of_one_class_and_of_no_edge_are_none():
    label, score = np.array([True, True]), np.array([0.2, 0.8])
    assert edge_scores(label, score, 0.5) == EdgeScores(0.5, None, None)
    assert edge_scores(~label, score, 0.5) == EdgeScores(None, 0.5, None)
    assert edge_scores(label[:0], score[:0], 0.5) == EdgeScores(None, None, None)


def test_a_nan_score_is_refused():
    with pytest.raises(ValueError, match="1 of 2 edge scores are NaN"):
        auc(np.array([True, False]), np.array([np.nan, 1.0]))


def test_roc_curve_passes_through_the_rates_at_every_threshold():
    rng = np.random.default_rng(1)
    label = rng.random(200) < 0.4
    score = rng.integers(0, 30, 200) + 8.0 * label
    curve = roc_curve(label, score, num_points=10_000)
    rates = [edge_scores(label, score, t)[:2] for t in [50.0, *np.unique(score)[::-1], -1.0]]
    expected = np.unique(np.array(rates), axis=0)
    np.testing.assert_allclose(np.stack([curve.tpr, curve.fpr], axis=1), expected, atol=1e-15)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auc(label, score))


def test_thinned_roc_curve_keeps_its_ends_and_its_area():
    rng = np.random.default_rng(2)
    label = rng.random(20_000) < 0.4
    score = rng.normal(size=20_000) + 3.0 * label
    curve = roc_curve(label, score, num_points=100)
    assert 90 < len(curve.tpr) <= 100
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auc(label, score), abs=1e-3)


def test_roc_curve_of_one_class_is_refused():
    with pytest.raises(ValueError, match="0 true and 3 false"):
        roc_curve(np.zeros(3, bool), np.ones(3))


def test_graph_scores_equal_the_dense_matrices():
    rng = np.random.default_rng(3)
    particle = rng.integers(0, 5, 30)
    truth = particle[:, None] == particle[None, :]
    candidate = rng.random((30, 30)) < np.where(truth, 0.8, 0.1)
    scores = graph_scores(30, int(truth.sum()), truth[candidate])
    assert scores.tpr == pytest.approx(candidate[truth].mean())
    assert scores.fpr == pytest.approx(candidate[~truth].mean())
    assert scores.purity == pytest.approx(truth[candidate].mean())
    assert scores.mean_degree == pytest.approx(candidate.sum(axis=1).mean())


def test_graph_scores_without_truth_or_candidates():
    assert graph_scores(3, 0, np.zeros(0, bool)) == GraphScores(None, 0, None, 0)
    assert graph_scores(2, 4, np.ones(4, bool)) == GraphScores(1, None, 1, 2)
