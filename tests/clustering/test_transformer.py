"""The set transformer as clusterer: what its chunks, thresholds and capacities must not change."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_graph import SMALL_NETWORK, toy_graph

from hypertrack_jax import device
from hypertrack_jax.clustering.baselines import large_components
from hypertrack_jax.clustering.micrographs import Micrographs
from hypertrack_jax.clustering.search import FULL_EVENT, SearchSizes, open_hits
from hypertrack_jax.clustering.transformer import (
    TRANSFORMER,
    WIDTHS,
    chunk_size,
    hit_tokens,
    init_clusterer,
    kept_edges,
    logits_of,
    members_of,
    transformer_clusters,
)
from hypertrack_jax.graph.event_graph import Bucket
from hypertrack_jax.networks.set_transformer import membership_logit
from hypertrack_jax.tunes.tune import Tune

# Tokens of 8: embeddings of 5, and positions.
NETWORK = replace(SMALL_NETWORK, embedding_dim=5, num_heads=2, num_attention_blocks=1)
TUNE = Tune("small", network=NETWORK)
CHUNK = device.CPU.few_micrographs


@cache
def params():
    return jax.jit(init_clusterer, static_argnums=0)(NETWORK, jax.random.key(0))


def some_micrographs(seed, num_seeds=2 * CHUNK + 5, num_slots=WIDTHS[0] + 10, num_hits=100):
    """Micrographs of all sizes from none to full, in no order."""
    rng = np.random.default_rng(seed)
    size = rng.integers(0, num_slots + 1, num_seeds)
    size[:CHUNK] = 0
    rng.shuffle(size)
    hit = np.full((num_seeds, num_slots), num_hits, np.int32)
    pivot = np.full((num_seeds, 3), num_hits, np.int32)
    for row, number in enumerate(size):
        hit[row, :number] = np.sort(rng.choice(num_hits, number, replace=False))
        pivot[row, : min(number, 3)] = rng.permutation(hit[row, :number])[:3]
    return Micrographs(*(jnp.asarray(a) for a in (hit, pivot, size.astype(np.int32))))


def test_chunks_grow_with_the_number_of_micrographs():
    numbers = [chunk_size(number) for number in (1, 64 * CHUNK, 64 * CHUNK + 640, 10**5)]
    assert numbers == [CHUNK, CHUNK, CHUNK + 10, device.CPU.many_micrographs]


def test_chunks_give_what_one_whole_array_gives():
    """Logits, and gradients of tokens and parameters."""
    micrographs, num_hits = some_micrographs(0), 100
    tokens = jax.random.normal(jax.random.key(1), (num_hits, 8))
    mask = micrographs.hit < num_hits
    weight = jnp.where(mask, jax.random.normal(jax.random.key(2), mask.shape), 0)

    def whole(params, tokens):
        padded = jnp.concatenate([tokens, jnp.zeros((1, 8))])
        pivot_mask = micrographs.pivot < num_hits
        logit = membership_logit(
            NETWORK,
            params[TRANSFORMER],
            padded[micrographs.hit],
            mask,
            padded[micrographs.pivot],
            pivot_mask,
        )
        return (weight * logit).sum(), logit

    def chunked(params, tokens):
        logit = logits_of(NETWORK, params, tokens, micrographs)
        return (weight * logit).sum(), logit

    results = []
    for function in (whole, chunked):
        gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))
        (_, logit), of = gradient(params(), tokens)
        results.append((jnp.where(mask, logit, 0), of))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *results)
    assert np.abs(results[0][1][1]).max() > 0.01


def test_tokens_are_embedding_and_position():
    """In mm for the published inputs, in metres where the node features are scaled."""
    embedding, position = jnp.ones((2, 5)), jnp.array([[100.0, -20.0, 3000.0], [1.0, 2.0, 3.0]])
    raw = hit_tokens(replace(NETWORK, node_features="cartesian"), embedding, position)
    np.testing.assert_allclose(raw[0], [1, 1, 1, 1, 1, 100, -20, 3000])
    scaled = hit_tokens(replace(NETWORK, node_features="cylindrical"), embedding, position)
    np.testing.assert_allclose(scaled[0], [1, 1, 1, 1, 1, 0.1, -0.02, 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("fixed", [True, True, False, False, False]),
        # The classes lie farthest apart with 0.8, 0.55 and 0.45 in one.
        ("fisher", [True, True, True, False, False]),
        # Learnt: a logit of 1, a probability of 0.73.
        ("soft", [True, False, False, False, False]),
    ],
)
def test_each_threshold_takes_what_it_should(kind, chosen):
    probability = np.array([[0.8, 0.55, 0.45, 0.05, 0.9]], np.float32)
    logit = jnp.asarray(np.log(probability / (1 - probability)))
    mask = jnp.array([[True, True, True, True, False]])
    members = members_of(kind, logit, mask, jnp.float32(1.0))
    np.testing.assert_array_equal(members.is_chosen, [chosen])
    np.testing.assert_allclose(members.probability, [[0.8, 0.55, 0.45, 0.05, 0]], rtol=1e-5)


def test_components_with_too_few_hits_are_closed():
    component = jnp.array([0, 0, 2, 2, 2, 5], jnp.int32)
    mask = jnp.array([True, True, True, True, True, False])
    np.testing.assert_array_equal(open_hits(component, mask, 3), [0, 0, 1, 1, 1, 0])
    # Padding is not counted.
    np.testing.assert_array_equal(open_hits(component, mask.at[2].set(False), 3), [0] * 6)


@cache
def scored_event():
    graph = toy_graph(0, num_particles=6, num_false=40, bucket=Bucket(128, 1024))
    graph = jax.tree.map(jnp.asarray, graph)
    label = np.asarray(graph.edges.label)
    noise = np.random.default_rng(0).random(len(label)).astype(np.float32)
    probability = jnp.asarray(np.where(label, 0.6 + 0.4 * noise, 0.5 * noise))
    embedding = jax.random.normal(jax.random.key(3), (128, 5))
    return graph, embedding, probability, kept_edges(graph, probability, jnp.float32(0.55), 32)


SIZES = SearchSizes(num_slots=64, num_rounds=200, num_seeds=16)


@partial(jax.jit, static_argnums=0)
def found_by(cluster, params, event):
    """The clusters of a scored event, whose capacities suffice."""
    graph, embedding, _, kept = event
    key = jax.random.key(0)
    return transformer_clusters(NETWORK, cluster, params, graph.nodes, embedding, kept, SIZES, key)


def test_the_degree_of_kept_edges_leaves_self_loops_out():
    graph, _, probability, kept = scored_event()
    keep = np.asarray(graph.edges.mask) & (np.asarray(probability) > 0.55)
    keep &= np.asarray(graph.senders) != np.asarray(graph.receivers)
    assert kept.neighbors.degree.max() == np.bincount(np.asarray(graph.receivers)[keep]).max() > 5


def test_searches_that_their_capacities_suffice_for_are_finished():
    found = found_by(TUNE.cluster, params(), scored_event())
    assert not found.is_unfinished
    assert found.needed_slots <= SIZES.num_slots
    assert int(found.num_micrographs) > 0
    np.testing.assert_array_equal(found.membership > 0, found.label >= 0)


@pytest.mark.parametrize("core_hits", [1, 3, 4])
def test_hits_left_over_join_cores_and_small_clusters_are_dropped(core_hits):
    """Membership as the fresh weights say: some hits of most particles are left over."""
    graph, embedding, probability, kept = scored_event()
    event = graph, embedding, probability, kept

    def labels(**settings):
        return np.asarray(found_by(replace(TUNE.cluster, **settings), params(), event).label)

    # Components of fewer than four hits would be searched, too, but all are larger.
    cores = labels(min_hits=core_hits)
    expected = cores.copy()
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    is_kept = np.asarray(graph.edges.mask & (probability > TUNE.cluster.edge_threshold))
    for hit in np.flatnonzero(cores < 0):
        edges = np.flatnonzero(is_kept & (receivers == hit) & (cores[senders] >= 0))
        if len(edges):
            expected[hit] = cores[senders[edges[np.argmax(np.asarray(probability)[edges])]]]
    assert np.any(expected != cores)
    for cluster in range(cores.max() + 1):
        if (expected == cluster).sum() < TUNE.cluster.min_hits:
            expected[expected == cluster] = -1
    np.testing.assert_array_equal(labels(core_hits=core_hits), expected)


@pytest.mark.parametrize("core_hits", [None, 3])
def test_the_least_score_of_a_small_event_is_in_proportion_to_its_hits(core_hits):
    cluster = replace(TUNE.cluster, core_hits=core_hits)
    event = scored_event()
    found = found_by(cluster, params(), event)
    label, membership = np.asarray(found.label), np.asarray(found.membership)
    scores = np.bincount(label[label >= 0], 2 * membership[label >= 0] - 1)
    least = np.median(scores) + 1e-3
    is_dropped = (label >= 0) & (scores[label] < least)
    assert 0 < is_dropped.sum() < (label >= 0).sum()
    num_hits = int(event[0].nodes.mask.sum())
    needed = replace(cluster, min_score=float(least) * FULL_EVENT / num_hits)
    np.testing.assert_array_equal(
        found_by(needed, params(), event).label, np.where(is_dropped, -1, label)
    )


def yes_sayer():
    """Parameters by which every hit of a micrograph belongs to it."""
    certain = jax.tree.map(lambda leaf: leaf, params())
    last = certain[TRANSFORMER]["membership_2"]
    certain[TRANSFORMER]["membership_2"] = {**last, "bias": last["bias"] + 30}
    return certain


def test_a_clusterer_that_takes_everything_finds_the_components():
    """Micrographs of good edges are whole particles."""
    event = scored_event()
    found = found_by(TUNE.cluster, yes_sayer(), event)
    expected = large_components(event[3].component, 4)
    assert expected.max() == 5
    # The search numbers its clusters as it finds them.
    pairs = set(zip(found.label.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == 7 and (-1, -1) in pairs
    np.testing.assert_array_equal(found.membership > 0.99, found.label >= 0)
