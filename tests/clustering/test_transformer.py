"""The set transformer as clusterer: what its chunks, thresholds and capacities must not change."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK, toy_graph

from hypertrack_jax.clustering.clusterer import (
    complete_search,
    enough_sizes,
    find_clusters,
    first_sizes,
)
from hypertrack_jax.clustering.micrographs import Micrographs
from hypertrack_jax.clustering.search import SearchSizes, open_hits
from hypertrack_jax.clustering.transformer import (
    CHUNK,
    LARGE_CHUNK,
    TRANSFORMER,
    WIDTHS,
    by_first_hit,
    chunk_size,
    hit_tokens,
    init_clusterer,
    kept_edges,
    logits_of,
    members_of,
)
from hypertrack_jax.graph.event_graph import Bucket
from hypertrack_jax.networks.set_transformer import membership_logit
from hypertrack_jax.tunes.tune import ClusterTune, Tune

# Tokens of 8: embeddings of 5, and positions.
NETWORK = replace(SMALL_NETWORK, embedding_dim=5, num_heads=2, num_attention_blocks=1)
TUNE = Tune("small", network=NETWORK)


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
    assert numbers == [CHUNK, CHUNK, CHUNK + 10, LARGE_CHUNK]


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
    return graph, embedding, probability, kept_edges(graph, probability, 0.55)


def test_the_degree_of_kept_edges_leaves_self_loops_out():
    graph, _, probability, kept = scored_event()
    keep = np.asarray(graph.edges.mask) & (np.asarray(probability) > 0.55)
    keep &= np.asarray(graph.senders) != np.asarray(graph.receivers)
    assert kept.max_degree == np.bincount(np.asarray(graph.receivers)[keep]).max() > 5


@pytest.mark.parametrize("method", ["cut", "dbscan", "hdbscan", "none"])
def test_other_methods_need_no_weights(method):
    tune = replace(TUNE, cluster=ClusterTune(cluster=method))
    if "scan" in method:
        pytest.importorskip("sklearn", reason="dbscan and hdbscan need scikit-learn")
    clusters = find_clusters(tune, None, *scored_event(), jax.random.key(0))
    num_hits = len(helix_event(0, 6).position)
    assert clusters.label.shape == clusters.membership.shape == (num_hits,)
    assert clusters.label.dtype == np.int32
    assert clusters.label.max() == (-1 if method == "none" else 5)
    np.testing.assert_array_equal(clusters.membership, clusters.label >= 0)


def test_the_search_goes_on_until_its_capacities_suffice():
    graph, *scores = scored_event()
    clusters = complete_search(TUNE, params(), graph, *scores, jax.random.key(0))
    assert not clusters.is_unfinished
    assert int(clusters.num_micrographs) > 0


def test_the_first_size_that_did_not_suffice_is_doubled_until_it_does():
    sizes = SearchSizes(num_neighbors=2, num_seeds=4, num_slots=2, num_rounds=3)
    assert enough_sizes(sizes, 2, 2, False) == sizes
    assert enough_sizes(sizes, 9, 5, True) == sizes._replace(num_neighbors=16)
    assert enough_sizes(sizes, 2, 5, True) == sizes._replace(num_slots=8)
    assert enough_sizes(sizes, 2, 1, True) == sizes._replace(num_rounds=6)


def test_searches_begin_with_capacities_that_their_hits_decide():
    for num_nodes, hops, largest, expected in (
        (128, 1, None, (32, 64)),
        (4096, 1, None, (32, 64)),
        (4097, 1, None, (64, 64)),
        (10**6, 1, None, (128, 128)),
        (65536, 2, None, (16, 128)),
        (10**6, 8, None, (32, 128)),
        (10**6, 8, 48, (32, 48)),
        (4096, 1, 500, (32, 64)),
    ):
        tune = ClusterTune(micrograph_hops=hops, largest_micrograph=largest)
        sizes = first_sizes(num_nodes, tune)
        assert (sizes.num_neighbors, sizes.num_slots) == expected
        assert sizes.num_seeds == max(16, num_nodes // 16)


def test_clusters_are_numbered_by_their_first_hits():
    label = jnp.array([-1, 5, 2, 5, -1, 0, 2, 2], jnp.int32)
    np.testing.assert_array_equal(by_first_hit(label), [-1, 0, 1, 0, -1, 2, 1, 1])


def test_labels_are_in_the_order_of_first_hits():
    found = find_clusters(TUNE, params(), *scored_event(), jax.random.key(0))
    names, first = np.unique(found.label[found.label >= 0], return_index=True)
    np.testing.assert_array_equal(names, np.arange(len(names)))
    assert np.all(np.diff(first) > 0)
    np.testing.assert_array_equal(found.membership > 0, found.label >= 0)


@pytest.mark.parametrize("core_hits", [1, 3, 4])
def test_hits_left_over_join_cores_and_small_clusters_are_dropped(core_hits):
    """Membership as the fresh weights say: some hits of most particles are left over."""
    graph, embedding, probability, kept = scored_event()
    event = (graph, embedding, probability, kept, jax.random.key(0))

    def labels(**settings):
        tune = replace(TUNE, cluster=replace(TUNE.cluster, **settings))
        return np.asarray(complete_search(tune, params(), *event).label)

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


def yes_sayer():
    """Parameters by which every hit of a micrograph belongs to it."""
    certain = jax.tree.map(lambda leaf: leaf, params())
    last = certain[TRANSFORMER]["membership_2"]
    certain[TRANSFORMER]["membership_2"] = {**last, "bias": last["bias"] + 30}
    return certain


def test_a_clusterer_that_takes_everything_finds_the_components():
    """Micrographs of good edges are whole particles."""
    graph, *scores = scored_event()
    found = find_clusters(TUNE, yes_sayer(), graph, *scores, jax.random.key(0))
    by_cut = replace(TUNE, cluster=ClusterTune(cluster="cut"))
    expected = find_clusters(by_cut, None, graph, *scores, jax.random.key(0))
    assert expected.label.max() == 5
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.membership > 0.99, found.label >= 0)
