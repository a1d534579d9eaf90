"""Connected components against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import coo_array, csgraph

from hypertrack_jax.clustering.components import connected_components, lower_labels


def smallest_node_of_component(senders, receivers, num_nodes):
    """Component labels by scipy, renamed to the smallest node."""
    graph = coo_array((np.ones(len(senders)), (senders, receivers)), shape=(num_nodes, num_nodes))
    _, component = csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return first[inverse]


def int32(*arrays):
    return tuple(np.asarray(array, np.int32) for array in arrays)


def chain(num_nodes, seed=None):
    node = np.arange(num_nodes)
    if seed is not None:
        node = np.random.default_rng(seed).permutation(num_nodes)
    return int32(node[:-1], node[1:])


def star(num_leaves, centre):
    leaves = np.delete(np.arange(num_leaves + 1), centre)
    return int32(np.full(num_leaves, centre), leaves)


# One direction of each edge only: the graph need not be symmetric.
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("edges_per_node", [0.2, 0.5, 1.0, 3.0])
def test_random_graphs(seed, edges_per_node):
    rng = np.random.default_rng(seed)
    senders, receivers = int32(*rng.integers(0, 500, (2, int(500 * edges_per_node))))
    label = connected_components(senders, receivers, np.ones(len(senders), bool), num_nodes=500)
    np.testing.assert_array_equal(label, smallest_node_of_component(senders, receivers, 500))


@pytest.mark.parametrize(
    ("senders", "receivers"),
    [
        chain(10_000),
        chain(10_000, seed=0),
        chain(10_000)[::-1],
        star(1000, centre=0),
        star(1000, centre=1000),
        star(1000, centre=500)[::-1],
    ],
)
def test_long_chains_and_stars_are_one_component(senders, receivers):
    num_nodes = len(senders) + 1
    label = connected_components(senders, receivers, np.ones(num_nodes - 1, bool), num_nodes)
    np.testing.assert_array_equal(label, np.zeros(num_nodes))


@pytest.mark.parametrize("seed", range(3))
def test_the_rounds_grow_as_the_logarithm_of_a_chain(seed):
    senders, receivers = chain(10_000, seed)
    label, rounds = jnp.arange(10_000, dtype=jnp.int32), 0
    one_round = jax.jit(lower_labels)
    while label.any():
        label, rounds = one_round(label, senders, receivers), rounds + 1
    assert rounds <= 1.5 * np.log2(10_000)


def test_masked_edges_join_nothing_and_padding_does_not_change_the_labels():
    rng = np.random.default_rng(5)
    senders, receivers = int32(*rng.integers(0, 300, (2, 250)))
    mask = rng.random(250) < 0.6
    padded = (np.append(part, rng.integers(0, 340, 70, np.int32)) for part in (senders, receivers))
    label = connected_components(*padded, np.append(mask, np.zeros(70, bool)), num_nodes=340)
    expected = smallest_node_of_component(senders[mask], receivers[mask], 340)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(
        label[:300], connected_components(senders, receivers, mask, num_nodes=300)
    )


def test_no_edges():
    none, mask = np.zeros(0, np.int32), np.zeros(0, bool)
    np.testing.assert_array_equal(connected_components(none, none, mask, num_nodes=5), np.arange(5))


def test_jitted_equals_unjitted():
    senders, receivers = int32([0, 4, 2, 2], [4, 3, 2, 5])
    mask = np.array([True, True, True, False])
    with jax.disable_jit():
        unjitted = connected_components(
            *map(jnp.asarray, (senders, receivers, mask)),
            num_nodes=6,
        )
    assert unjitted.tolist() == [0, 1, 2, 0, 0, 5]
    assert connected_components(senders, receivers, mask, num_nodes=6).tolist() == unjitted.tolist()
