"""Which pairs of cells an estimator takes for connected."""

import numpy as np
import pytest

from hypertrack_jax.voxdyn import model
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT


def test_threshold_is_a_count_or_a_quantile_of_the_pairs():
    histogram = np.array([0, 10, 5, 0, 20])  # 10, 10 and 80 pairs with counts of 1, 2 and 4
    for quantile, threshold in ((0.05, 1), (0.1, 2), (0.15, 2), (0.2, 4), (0.99, 4)):
        assert model.count_threshold(histogram, quantile) == threshold
    for count in (1, 4, 4.0):
        assert model.count_threshold(histogram, count) == count
    assert model.count_threshold(np.zeros(1, np.int64), 0.5) == 1


@pytest.mark.parametrize("min_count", [0, -1, 1.5, MAX_COUNT + 1])
def test_threshold_that_is_neither(min_count):
    with pytest.raises(ValueError, match=rf"min_count={min_count}: expected a whole number"):
        model.count_threshold(np.array([0, 3]), min_count)
