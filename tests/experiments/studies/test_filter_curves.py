"""What the curves of a filter say, against scores that were made by hand."""

import numpy as np
import pytest
from studies.filter_curves import CLASSES, ScoredEdges, curve, kept_at

# Ten edges, four of them true; the stage before took two out, one of them true.
LOGIT = np.array([5, 4, 3, 2, 1, 0, -1, -2, -np.inf, -np.inf], np.float32)
IS_TRUE = np.array([1, 0, 1, 0, 0, 1, 0, 0, 1, 0], np.bool_)
RADIUS = np.where(IS_TRUE, [0, 0, 50, 0, 0, 200, 0, 0, 0, 0], np.nan)
PT = np.where(IS_TRUE, [1, 0, 0.2, 0, 0, 0.5, 0, 0, 2, 0], np.nan)
EDGES = ScoredEdges(LOGIT, IS_TRUE, RADIUS, PT, np.where(IS_TRUE, -2.0, np.nan))


def test_the_share_that_is_kept_at_an_efficiency():
    kept = kept_at(EDGES, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(kept[:3], [0.1, 0.3, 0.6])
    assert np.isnan(kept[3])


def test_a_curve_ends_where_nothing_is_left():
    kept, efficiency = curve(EDGES, IS_TRUE)
    np.testing.assert_allclose(kept, np.arange(1, 9) / 10)
    np.testing.assert_allclose(efficiency, [0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75])


@pytest.mark.parametrize("title", CLASSES)
def test_every_true_edge_is_of_one_class(title):
    of = np.stack([is_of(EDGES) for is_of in CLASSES[title].values()])
    np.testing.assert_array_equal(of.sum(axis=0), IS_TRUE)


def test_the_efficiency_of_a_class_is_over_its_own_edges():
    displaced = CLASSES["Origin"]["30 to 100 mm"](EDGES)
    assert curve(EDGES, displaced)[1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
