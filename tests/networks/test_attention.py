"""What the set transformer's tests do not see of its blocks: empty sets, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.networks.attention import LayerNorm, attention, masked_softmax


def test_a_set_without_members_shows_nothing():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    seen = attention(x, x, x, jnp.asarray([[False] * 3, [True, False, False]]), num_heads=2)
    np.testing.assert_array_equal(seen[0], np.zeros((3, 4)))
    # Of a single member everyone sees that member's value.
    np.testing.assert_allclose(seen[1], np.tile(x[1, 0], (3, 1)), rtol=1e-6)


def test_a_softmax_of_hand_computed_scores():
    score = jnp.log(jnp.asarray([[[1.0, 2.0, 5.0, 7.0]]]))
    weight = masked_softmax(score, jnp.asarray([[[True, False, True, False]]]))
    np.testing.assert_allclose(weight[0, 0], [1 / 6, 0, 5 / 6, 0], rtol=1e-6)


def test_half_precision_scores_keep_their_differences():
    # Scores 1024 / 4 and 1028 / 4: in bfloat16 both products would round to 1024.
    query = jnp.full((1, 1, 16), 8, jnp.bfloat16)
    key = jnp.full((1, 2, 16), 8, jnp.bfloat16).at[0, 1, 0].add(0.5)
    value = jnp.asarray([[[0.0], [1.0]]], jnp.bfloat16) * jnp.ones((1, 2, 16), jnp.bfloat16)
    seen = attention(query, key, value, jnp.ones((1, 2), bool), num_heads=1)
    assert seen.dtype == jnp.bfloat16
    assert float(seen[0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-1)), rel=5e-3)


def test_half_precision_rows_are_normed_by_float32_statistics():
    # The mean, 100.25, is between two numbers of bfloat16.
    x = jnp.asarray([[[100.0, 100.5] * 8]], jnp.bfloat16)
    norm = LayerNorm(16)
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0, 0].astype(np.float32), [-1.0, 1.0] * 8, rtol=1e-2)
