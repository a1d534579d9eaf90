"""The set transformer against the formulas of algorithm.md, section 4, and its symmetries."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import attention_block, linear, silu

from hypertrack_jax.networks.set_transformer import init_set_transformer, membership_logit
from hypertrack_jax.tunes.tune import NetworkTune
from hypertrack_jax.tunes.tune_5 import TUNE

SMALL = NetworkTune(embedding_dim=5, num_heads=2, num_attention_blocks=2)
NUM_CLUSTERS, NUM_HITS, NUM_PIVOTS = 3, 7, 4


@pytest.fixture(autouse=True)
def float64():
    """The symmetries are exact; in float64 a test can ask for them to 1e-10."""
    with jax.enable_x64(True):
        yield


class Clusters(NamedTuple):
    """Arguments of `membership_logit` after the parameters."""

    tokens: jax.Array
    hit_mask: jax.Array
    pivot_tokens: jax.Array
    pivot_mask: jax.Array


@pytest.fixture
def clusters():
    """Clusters of different sizes, real hits and pivots first."""
    rng = np.random.default_rng(0)
    num_hits, num_pivots = np.array([[7], [4], [1]]), np.array([[3], [1], [2]])
    return Clusters(
        jnp.asarray(rng.normal(size=(NUM_CLUSTERS, NUM_HITS, SMALL.token_dim))),
        jnp.asarray(np.arange(NUM_HITS)[None, :] < num_hits),
        jnp.asarray(rng.normal(size=(NUM_CLUSTERS, NUM_PIVOTS, SMALL.token_dim))),
        jnp.asarray(np.arange(NUM_PIVOTS)[None, :] < num_pivots),
    )


@pytest.fixture
def params():
    """No bias 0 and no scale 1."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), fresh_params())


@partial(jax.jit, static_argnames="dtype")
def logits(params, clusters, dtype=jnp.float64):
    return membership_logit(SMALL, params, *clusters, dtype=dtype)


@jax.jit
def fresh_params():
    return init_set_transformer(SMALL, jax.random.key(0))


@jax.jit
def gradients(params, clusters):
    """Gradients of a function of all real logits, by parameters, tokens and pivot tokens."""

    def value(params, tokens, pivot_tokens):
        given = clusters._replace(tokens=tokens, pivot_tokens=pivot_tokens)
        logit = logits(params, given)
        cluster, hit = (jnp.arange(float(size)) for size in logit.shape)
        weight = 1 + hit[None, :] + 10 * cluster[:, None]
        return jnp.where(clusters.hit_mask, jnp.sin(logit) * weight, 0).sum()

    return jax.grad(value, argnums=(0, 1, 2))(params, clusters.tokens, clusters.pivot_tokens)


def expected_logits(params: Any, hits, pivots):
    """Algorithm section 4 for a single cluster."""

    def encoded(x):
        return linear(params["encoder_1"], silu(linear(params["encoder_0"], x)))

    x = attention_block(params["of_pivots"], encoded(hits), encoded(pivots), SMALL.num_heads)
    for i in range(SMALL.num_attention_blocks):
        x = attention_block(params[f"of_hits_{i}"], x, x, SMALL.num_heads)
    for i in range(2):
        x = silu(linear(params[f"membership_{i}"], x))
    return linear(params["membership_2"], x)[:, 0]


def test_every_cluster_has_the_logits_of_the_formulas_on_its_real_hits(params, clusters):
    found, params, clusters = jax.device_get((logits(params, clusters), params, clusters))
    for row, hits, hit_mask, pivots, pivot_mask in zip(found, *clusters, strict=True):
        expected = expected_logits(params, hits[hit_mask], pivots[pivot_mask])
        np.testing.assert_allclose(row[hit_mask], expected, rtol=1e-10, atol=1e-12)
    assert np.std(found[0]) > 1e-3


def test_published_width_has_the_published_number_of_parameters():
    params = jax.eval_shape(lambda: init_set_transformer(TUNE.network, jax.random.key(0)))
    assert TUNE.network.token_dim == 64
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 137_025
    block = sum(leaf.size for leaf in jax.tree.leaves(params["of_hits_3"]))
    assert (block, "of_hits_4" in params) == (25_216, False)


def test_hits_in_another_order_have_their_logits_in_that_order(params, clusters):
    order = np.random.default_rng(2).permutation(NUM_HITS)
    permuted = clusters._replace(
        tokens=clusters.tokens[:, order], hit_mask=clusters.hit_mask[:, order]
    )
    before, after = logits(params, clusters), logits(params, permuted)
    assert np.any(np.abs(before - after) > 1e-3)
    np.testing.assert_allclose(before[:, order], after, rtol=1e-10, atol=1e-12)


def test_the_order_of_pivots_does_not_matter_and_they_do(params, clusters):
    order = np.array([2, 3, 1, 0])
    permuted = clusters._replace(
        pivot_tokens=clusters.pivot_tokens[:, order], pivot_mask=clusters.pivot_mask[:, order]
    )
    before = logits(params, clusters)
    np.testing.assert_allclose(before, logits(params, permuted), rtol=1e-10, atol=1e-12)
    others = clusters._replace(pivot_tokens=clusters.pivot_tokens + 0.3)
    assert np.all(np.abs(before - logits(params, others)) > 1e-6)


def test_clusters_do_not_see_each_other(params, clusters):
    other = clusters._replace(tokens=clusters.tokens.at[1].set(0.7))
    before, after = logits(params, clusters), logits(params, other)
    np.testing.assert_array_equal(before[::2], after[::2])
    assert np.any(before[1] != after[1])


@pytest.mark.parametrize("garbage", [1e6, np.nan, np.inf])
def test_what_stands_in_padding_changes_no_logit_and_no_gradient(params, clusters, garbage):
    def spoilt(tokens, mask):
        return jnp.where(mask[..., None], tokens, garbage)

    other = clusters._replace(
        tokens=spoilt(clusters.tokens, clusters.hit_mask),
        pivot_tokens=spoilt(clusters.pivot_tokens, clusters.pivot_mask),
    )
    before, after = logits(params, clusters), logits(params, other)
    assert np.all(np.isfinite(after))
    np.testing.assert_array_equal(before, after)
    jax.tree.map(
        np.testing.assert_array_equal, gradients(params, clusters), gradients(params, other)
    )


def test_longer_padding_changes_no_logit_and_no_gradient(params, clusters):
    longer = Clusters(
        *(jnp.pad(array, ((0, 2), (0, 5)) + ((0, 0),) * (array.ndim - 2)) for array in clusters)
    )
    tight, loose = logits(params, clusters), logits(params, longer)
    mask = np.asarray(clusters.hit_mask)
    found = loose[:NUM_CLUSTERS, :NUM_HITS]
    np.testing.assert_allclose(tight[mask], found[mask], rtol=1e-10, atol=1e-12)
    of_tight, of_loose = gradients(params, clusters), gradients(params, longer)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10),
        of_tight[0],
        of_loose[0],
    )
    np.testing.assert_allclose(
        of_tight[1], of_loose[1][:NUM_CLUSTERS, :NUM_HITS], rtol=1e-8, atol=1e-10
    )
    assert np.all(np.abs(of_tight[1]).max(axis=-1)[mask] > 0)
    assert np.all(of_tight[1][~mask] == 0)


@pytest.mark.parametrize("has_pivots", [False, True])
@pytest.mark.parametrize("has_hits", [False, True])
def test_a_cluster_of_nothing_has_finite_logits_and_gradients(
    params, clusters, has_hits, has_pivots
):
    bare = clusters._replace(
        hit_mask=clusters.hit_mask.at[0].set(has_hits),
        pivot_mask=clusters.pivot_mask.at[0].set(has_pivots),
    )
    for leaf in jax.tree.leaves((logits(params, bare), gradients(params, bare))):
        assert np.all(np.isfinite(leaf))


def test_equal_hits_and_zero_weights_have_finite_gradients(params, clusters):
    # Rows of equal values have no variance, so the norms divide by the root of epsilon alone.
    flat = clusters._replace(tokens=jnp.zeros_like(clusters.tokens))
    for leaf in jax.tree.leaves(gradients(jax.tree.map(jnp.zeros_like, params), flat)):
        assert np.all(np.isfinite(leaf))


def narrowed(tree):
    """The tree with its float64 arrays in float32."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, tree
    )


def test_large_scores_do_not_overflow(params, clusters):
    large = clusters._replace(
        tokens=3e6 * clusters.tokens, pivot_tokens=3e6 * clusters.pivot_tokens
    )
    params, large = narrowed((params, large))
    found = logits(params, large, jnp.float32)
    assert found.dtype == jnp.float32
    assert np.all(np.isfinite(found))


def test_bfloat16_is_near_float32(params, clusters):
    params, clusters = narrowed((params, clusters))
    half, full = (logits(params, clusters, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert (half.dtype, full.dtype) == (jnp.bfloat16, jnp.float32)
    mask = np.asarray(clusters.hit_mask)
    half, full = (np.asarray(logit, np.float64)[mask] for logit in (half, full))
    assert np.linalg.norm(half - full) < 0.05 * np.linalg.norm(full)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"width 8 .* among 3 heads; choose num_heads"):
        init_set_transformer(NetworkTune(embedding_dim=5, num_heads=3), jax.random.key(0))
