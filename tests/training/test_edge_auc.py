"""The compiled AUC against the one of the host side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.evaluation import edge_metrics
from hypertrack_jax.training.edge_auc import masked_auc


def edges(seed, num_edges, num_levels, dtype=np.float32):
    rng = np.random.default_rng(seed)
    label = rng.random(num_edges) < 0.3
    level = rng.integers(0, num_levels, num_edges) + 0.3 * num_levels * label
    return (level / num_levels - 0.5).astype(dtype), label, np.ones(num_edges, bool)


@pytest.mark.parametrize("num_edges", [2, 64, 65, 1000])
@pytest.mark.parametrize("num_levels", [1, 4, 10_000])
def test_equals_the_host_side_auc(num_edges, num_levels):
    logit, label, mask = edges(num_edges, num_edges, num_levels)
    label[:2] = True, False
    assert masked_auc(logit, label, mask) == pytest.approx(edge_metrics.auc(label, logit), abs=1e-7)


def test_separated_edges_and_their_reverse():
    logit, label = np.arange(8, dtype=np.float32), np.arange(8) > 4
    mask = np.ones(8, bool)
    assert masked_auc(logit, label, mask) == 1.0
    assert masked_auc(-logit, label, mask) == 0.0
    assert masked_auc(0 * logit, label, mask) == 0.5


def test_zero_and_minus_zero_tie():
    logit = np.array([-0.0, 0.0, 0.0, -0.0], np.float32)
    assert masked_auc(logit, np.array([True, False, True, False]), np.ones(4, bool)) == 0.5


def test_padding_has_no_influence_whatever_it_holds():
    logit, label, mask = edges(0, 3000, 50)
    rng = np.random.default_rng(1)
    order = rng.permutation(4000)
    garbage = rng.choice(np.array([np.nan, np.inf, -np.inf, 0.1], np.float32), 1000)
    padded = (
        np.concatenate([logit, garbage])[order],
        np.concatenate([label, rng.random(1000) < 0.5])[order],
        np.concatenate([mask, np.zeros(1000, bool)])[order],
    )
    assert masked_auc(*padded) == pytest.approx(float(masked_auc(logit, label, mask)), abs=1e-7)


def test_infinite_logits_of_real_edges_are_scores_like_others():
    logit = np.array([np.inf, -np.inf, np.inf, 0.0, 5.0], np.float32)
    label = np.array([True, False, False, True, True])
    mask = np.array([True, True, True, True, False])
    # The pairs of true and false: (inf, -inf) won, (inf, inf) tied, (0, -inf) won, (0, inf) lost.
    assert masked_auc(logit, label, mask) == 2.5 / 4


def test_one_class_or_no_edge_is_a_coin():
    logit, _, mask = edges(0, 10, 5)
    everything = np.ones(10, bool)
    assert masked_auc(logit, everything, mask) == 0.5
    assert masked_auc(logit, ~everything, mask) == 0.5
    assert masked_auc(logit, np.arange(10) < 5, ~mask) == 0.5


def test_a_real_nan_shows():
    logit, label, mask = edges(0, 10, 5)
    logit[3] = np.nan
    assert np.isnan(masked_auc(logit, label, mask))


def test_jitted_equals_unjitted_in_half_precision_too():
    logit, label, mask = edges(2, 70, 20)
    half = jnp.asarray(logit, jnp.bfloat16)
    with jax.disable_jit():
        unjitted = masked_auc(half, jnp.asarray(label), jnp.asarray(mask))
    assert masked_auc(half, label, mask) == unjitted
    assert unjitted.dtype == jnp.float32
    expected = edge_metrics.auc(label, np.asarray(half.astype(jnp.float32)))
    assert unjitted == pytest.approx(expected, abs=1e-7)


def test_two_million_edges_lose_nothing_to_int32_or_float32():
    logit, label, mask = edges(3, 2_000_000, 1000)
    assert masked_auc(logit, label, mask) == pytest.approx(edge_metrics.auc(label, logit), abs=2e-7)
