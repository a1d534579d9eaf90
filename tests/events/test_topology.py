"""True edges against a search particle by particle."""

import itertools

import numpy as np
import pytest
from handmade import random_event

from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.topology import TOPOLOGIES, edge_labels, require_topology, truth_edges

# Hits 0 to 6 of one particle: two arms of two hits and one of one leave hit 3.
#   0 - 1 - 3 - 2 - 4
#           |
#           5 - 6
BRANCHING = np.array(
    [(-2, 0, 0), (-1, 0, 0), (1.1, 0, 0), (0, 0, 0), (2.3, 0, 0), (0, 1.2, 0), (0, 2.5, 0)],
    np.float32,
)
BRANCHES = {(0, 1), (1, 3), (2, 3), (2, 4), (3, 5), (5, 6)}


def _hits_of_particles(event):
    return [
        np.flatnonzero(event.hit_particle == k) for k in set(event.hit_particle.tolist()) - {-1}
    ]


def _kruskal(position, hits):
    """Edges of the minimum spanning tree, shortest pairs first, by relabelling whole trees."""
    pairs = itertools.combinations(hits.tolist(), 2)
    tree_of = {hit: hit for hit in hits.tolist()}
    edges = set()
    for a, b in sorted(pairs, key=lambda p: np.linalg.norm(position[p[0]] - position[p[1]])):
        if tree_of[a] != tree_of[b]:
            edges.add((a, b))
            joined = tree_of[b]
            tree_of = {h: tree_of[a] if t == joined else t for h, t in tree_of.items()}
    return edges


def _within_two_steps(tree, hits):
    """All pairs at most two steps apart, by walking from every hit."""
    neighbours = {hit: {hit} for hit in hits.tolist()}
    for a, b in tree:
        neighbours[a].add(b)
        neighbours[b].add(a)
    return {(a, c) for a in neighbours for b in neighbours[a] for c in neighbours[b]}


def _oracle(event, node2node):
    """The set of true (sender, receiver), particle by particle."""
    position, edges = event.position.astype(np.float64), set()
    for hits in _hits_of_particles(event):
        if node2node == "hyper":
            edges |= set(itertools.product(hits.tolist(), repeat=2))
            continue
        tree = _kruskal(position, hits)
        if node2node == "eom":
            edges |= tree | {(b, a) for a, b in tree} | {(a, a) for a in hits.tolist()}
        else:
            edges |= _within_two_steps(tree, hits)
    return edges


def _pairs(senders, receivers):
    return list(zip(senders.tolist(), receivers.tolist(), strict=True))


@pytest.mark.parametrize("node2node", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(3))
def test_edges_are_those_of_a_search_particle_by_particle(node2node, seed):
    # A particle with more than 30 hits, single hits, particles without any, and noise.
    event = random_event(seed, [40, 1, 0, 7, 2, 1, 12, 0], num_noise=9)
    senders, receivers = truth_edges(event, node2node)
    assert senders.dtype == receivers.dtype == np.int32
    edges = _pairs(senders, receivers)
    assert edges == sorted(_oracle(event, node2node), key=lambda edge: edge[::-1])


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_labels_are_membership_in_the_truth(node2node):
    event = random_event(3, [33, 1, 6, 3], num_noise=5)
    num_hits = len(event.position)
    senders, receivers = np.divmod(np.random.default_rng(0).permutation(num_hits**2), num_hits)
    truth = _oracle(event, node2node)
    expected = [edge in truth for edge in _pairs(senders, receivers)]
    assert edge_labels(event, senders, receivers, node2node).tolist() == expected
    few = senders[:0].astype(np.int32)
    assert edge_labels(event, few, few, node2node).shape == (0,)


def _one_particle(position):
    return random_event(0, [len(position)])._replace(position=np.asarray(position, np.float32))


def test_a_branching_tree():
    event = _one_particle(BRANCHING)
    loops = {(i, i) for i in range(7)}
    one_step = BRANCHES | {(b, a) for a, b in BRANCHES} | loops
    two_steps = {(0, 3), (1, 2), (1, 5), (2, 5), (3, 4), (3, 6)}
    assert set(_pairs(*truth_edges(event, "eom"))) == one_step
    assert set(_pairs(*truth_edges(event, "cricket"))) == (
        one_step | two_steps | {(b, a) for a, b in two_steps}
    )


def test_hits_at_the_same_place_are_linked():
    event = _one_particle([(5, 5, 5), (9, 5, 5), (5, 5, 5), (5, 5, 5)])
    senders, receivers = truth_edges(event, "eom")
    proper = [(a, b) for a, b in _pairs(senders, receivers) if a < b]
    # A tree over four hits whose only step of positive length leads to hit 1.
    assert len(proper) == 3
    assert sum(1 in edge for edge in proper) == 1
    assert {hit for edge in proper for hit in edge} == {0, 1, 2, 3}
    assert len(set(zip(senders, receivers, strict=True))) == len(senders) == 2 * 3 + 4


def test_distances_are_compared_in_double_precision():
    # Far from the first hit two neighbours, at distances that differ by 1e-8 of their value: which
    # of the two is linked to it is decided by digits that a float32 does not have.
    event = random_event(0, [3] * 50)
    angle = np.linspace(0, 6, 50)[:, None] + np.array([0, 1e-3])
    pairs = 3000 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
    triples = np.concatenate([np.zeros((50, 1, 3)), pairs], axis=1).astype(np.float32)
    by_particle = np.argsort(event.hit_particle, kind="stable")
    event.position[by_particle] = triples.reshape(-1, 3)
    assert set(_pairs(*truth_edges(event, "eom"))) == _oracle(event, "eom")


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_an_event_of_noise_has_no_edges(node2node):
    event = random_event(0, [], num_noise=4)
    senders, receivers = truth_edges(event, node2node)
    assert len(senders) == len(receivers) == 0
    hits = np.arange(4)
    assert (event.hit_particle == NOISE).all()
    assert not edge_labels(event, hits, hits, node2node).any()


def test_a_misspelt_topology_is_named():
    event = random_event(0, [2])
    hits = np.arange(2)
    message = "node2node=hyperr is unknown; choose hyper, eom, cricket"
    with pytest.raises(ValueError, match=message):
        require_topology("hyperr")
    with pytest.raises(ValueError, match=message):
        truth_edges(event, "hyperr")
    with pytest.raises(ValueError, match=message):
        edge_labels(event, hits, hits, "hyperr")
