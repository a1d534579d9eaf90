"""The candidate graph of a hand-made event, and plain loops on random ones."""

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.evaluation import graph_quality
from hypertrack_jax.evaluation.edge_metrics import graph_scores
from hypertrack_jax.evaluation.graph_quality import GraphQuality
from hypertrack_jax.events.event import NOISE, no_particles
from hypertrack_jax.events.topology import TOPOLOGIES, edge_labels, truth_edges
from hypertrack_jax.reconstruction.candidates import CandidateEdges, predict_edges
from hypertrack_jax.voxdyn.fit import fit_voxdyn


def candidates(pairs, counts=None):
    """Candidate edges from a list of (sender, receiver)."""
    senders, receivers = np.array(pairs, np.int32).reshape(-1, 2).T
    counts = np.ones(len(pairs)) if counts is None else counts
    return CandidateEdges(senders, receivers, np.array(counts, np.int32))


def line_event(hit_particle):
    """Hits in a row, 1 mm apart, so that the tree of a particle joins its hits in their order."""
    event = helix_event(0, num_particles=max(hit_particle) + 1)
    num_hits = len(hit_particle)
    position = np.zeros((num_hits, 3), np.float32)
    position[:, 0] = np.arange(num_hits)
    return event._replace(
        position=position,
        hit_id=np.arange(num_hits, dtype=np.int64),
        hit_particle=np.array(hit_particle, np.int32),
        hit_weight=np.ones(num_hits) / num_hits,
        module=np.zeros((num_hits, 3), np.int32),
    )


# Particle 0 has hits 0 to 3, particle 1 hits 4 to 7, particle 2 hits 8 and 9; hit 10 is noise.
EVENT = line_event([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, NOISE])
ONE_WAY = [(0, 1), (1, 2), (4, 5), (6, 7), (3, 10), (10, 4), (8, 9)]
"""Particle 0: 0-1-2 and 3 alone. Particle 1: 4-5 and 6-7. A way from 3 to 4 through noise."""
COUNT = [9, 3, 5, 5, 9, 1, 2]
LOOPS = [(hit, hit) for hit in range(5)]
"""Self-loops of hits 0 to 4 only, each counted 4 times."""
EDGES = candidates(
    ONE_WAY + [(b, a) for a, b in ONE_WAY] + LOOPS, counts=COUNT + COUNT + [4] * len(LOOPS)
)


def shares_by_loops(event, edges, min_hits):
    """Connected shares by plain flooding, particle by particle."""
    shares = {}
    for particle in range(len(event.particles.particle_id)):
        own = set(np.flatnonzero(event.hit_particle == particle).tolist())
        if len(own) < min_hits:
            continue
        todo, largest = set(own), 0
        while todo:
            front, piece = {todo.pop()}, set()
            while front:
                piece |= front
                ends = {
                    int(end)
                    for sender, receiver in zip(edges.senders, edges.receivers, strict=True)
                    for start, end in ((sender, receiver), (receiver, sender))
                    if int(start) in front
                }
                front = (ends & own) - piece
            todo -= piece
            largest = max(largest, len(piece))
        shares[particle] = largest / len(own)
    return shares


def test_every_number_of_the_hand_made_event():
    row = graph_quality.graph_row(EVENT, EDGES, "hyper", seconds=0.25)
    # 4^2 + 4^2 + 2^2 pairs of one particle; 5 edges and their reverses, and 5 self-loops.
    assert row == {
        "event": 1,
        "hits": 11,
        "edges": 19,
        "degree": 19 / 11,
        "VD TPR": 15 / 36,
        "VD FPR": 4 / (121 - 36),
        "VD purity": 15 / 19,
        "connected share": (3 / 4 + 2 / 4) / 2,
        "fully connected": 0.0,
        "VD ms": 250.0,
    }


def test_every_number_of_the_hand_made_event_against_the_tree():
    # 3 + 3 + 1 edges of the trees in both directions, and a self-loop for 10 hits of particles.
    row = graph_quality.graph_row(EVENT, EDGES, "eom")
    assert (row["VD TPR"], row["VD FPR"]) == (15 / 24, 4 / (121 - 24))
    assert "VD ms" not in row


def test_scan_of_the_hand_made_event_in_the_order_asked_for():
    points = graph_quality.min_count_scan(EVENT, EDGES, "hyper", [5, 1, 10])
    # Of 9, 5, 5 and 9 the first three are within particles; particle 0 falls to two hits.
    assert points[0] == GraphQuality(5, 8, 8 / 11, 6 / 36, 2 / 85, 6 / 8, 0.5, 0.0)
    assert points[1].num_edges == 19
    assert points[2] == GraphQuality(10, 0, 0.0, 0.0, 0.0, None, 0.25, 0.0)


@pytest.mark.parametrize("min_hits", [1, 2, 3, 4, 5])
def test_particles_below_the_fewest_hits_do_not_count(min_hits):
    found = graph_quality.particle_connectivity(EVENT, EDGES.senders, EDGES.receivers, min_hits)
    expected = {0: 3 / 4, 1: 2 / 4, 2: 1.0}
    sizes = {0: 4, 1: 4, 2: 2}
    chosen = [particle for particle in expected if sizes[particle] >= min_hits]
    np.testing.assert_array_equal(found.particle, chosen)
    np.testing.assert_array_equal(found.share, [expected[particle] for particle in chosen])


def test_one_direction_of_an_edge_is_enough():
    once = candidates(ONE_WAY)
    found = graph_quality.particle_connectivity(EVENT, once.senders, once.receivers)
    np.testing.assert_array_equal(found.share, [3 / 4, 2 / 4])


def test_a_particle_that_lacks_one_hit_of_many_is_not_fully_connected():
    event = line_event([0] * 30 + [1] * 4)
    chain = [(hit, hit + 1) for hit in range(33) if hit not in (28, 29)]
    row = graph_quality.graph_row(event, candidates(chain), "eom")
    assert row["connected share"] == pytest.approx((29 / 30 + 1) / 2)
    assert row["fully connected"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_connectivity_is_what_flooding_each_particle_finds(seed):
    event = helix_event(seed, num_particles=8)
    rng = np.random.default_rng(seed)
    senders, receivers = truth_edges(event, "eom")
    kept = rng.random(len(senders)) < 0.5
    stray = rng.integers(len(event.position), size=(2, 60)).astype(np.int32)
    edges = CandidateEdges(
        np.append(senders[kept], stray[0]), np.append(receivers[kept], stray[1]), np.zeros(0)
    )
    found = graph_quality.particle_connectivity(event, edges.senders, edges.receivers, 5)
    expected = shares_by_loops(event, edges, 5)
    assert dict(zip(found.particle.tolist(), found.share.tolist(), strict=True)) == expected
    assert len({*expected.values()}) > 2, "take seeds with particles in pieces and whole ones"


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_the_true_graph_is_perfect_and_holds_every_particle_together(node2node):
    event = helix_event(1, num_particles=10)
    senders, receivers = truth_edges(event, node2node)
    edges = CandidateEdges(senders, receivers, np.ones(len(senders), np.int32))
    row = graph_quality.graph_row(event, edges, node2node)
    assert (row["VD TPR"], row["VD FPR"], row["VD purity"]) == (1.0, 0.0, 1.0)
    assert (row["connected share"], row["fully connected"]) == (1.0, 1.0)


@pytest.fixture(scope="module")
def fitted():
    """An estimator of each topology, fitted to ten toy events."""
    events = [helix_event(seed, event_id=seed) for seed in range(1, 11)]
    return {name: fit_voxdyn(events, 64, name, num_iterations=2) for name in TOPOLOGIES}


@pytest.mark.parametrize("judged", TOPOLOGIES)
@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_a_scan_equals_new_look_ups_and_the_scores_of_all_labels(fitted, node2node, judged):
    event, vd = helix_event(99), fitted[node2node]
    min_counts = [1, 2, 3, 7, 1000]
    scan = graph_quality.min_count_scan(
        event, predict_edges(vd, event.position), judged, min_counts
    )
    assert len({point.num_edges for point in scan}) == len(min_counts), "take counts that differ"
    none = CandidateEdges(*(np.zeros(0, np.int32) for _ in range(3)))
    for point in scan:
        # No pair was counted so often, which `predict_edges` refuses.
        is_empty = point.min_count == 1000
        edges = none if is_empty else predict_edges(vd, event.position, point.min_count)
        row = graph_quality.graph_row(event, edges, judged)
        names = ["edges", "degree", "VD TPR", "VD FPR", "VD purity"]
        assert list(point[1:]) == [
            row[name] for name in [*names, "connected share", "fully connected"]
        ]
        label = edge_labels(event, edges.senders, edges.receivers, judged)
        scores = graph_scores(len(event.position), len(truth_edges(event, judged)[0]), label)
        assert (point.tpr, point.fpr, point.purity, point.mean_degree) == scores


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_the_order_of_edges_and_the_names_of_hits_do_not_matter(fitted, node2node):
    event = helix_event(98)
    rng = np.random.default_rng(0)
    edges = predict_edges(fitted[node2node], event.position)
    new_index = rng.permutation(len(event.position))
    order, shuffled = np.argsort(new_index), rng.permutation(len(edges.senders))
    renamed = event._replace(position=event.position[order], hit_particle=event.hit_particle[order])
    moved = CandidateEdges(
        new_index[edges.senders[shuffled]].astype(np.int32),
        new_index[edges.receivers[shuffled]].astype(np.int32),
        edges.counts[shuffled],
    )
    expected = graph_quality.min_count_scan(event, edges, node2node, [1, 3])
    found = graph_quality.min_count_scan(renamed, moved, node2node, [1, 3])
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other)


def test_a_larger_min_count_never_adds(fitted):
    event = helix_event(97)
    edges = predict_edges(fitted["hyper"], event.position)
    scan = graph_quality.min_count_scan(event, edges, "hyper", range(1, 12))
    for name in ("num_edges", "mean_degree", "tpr", "fpr", "connected_share", "fully_connected"):
        values = [getattr(point, name) for point in scan]
        assert values == sorted(values, reverse=True), name


def test_without_truth_only_the_sizes_are_known():
    num_hits = len(EVENT.position)
    event = EVENT._replace(
        hit_particle=np.full(num_hits, NOISE, np.int32), particles=no_particles(), has_truth=False
    )
    assert graph_quality.min_count_scan(event, EDGES, "eom", [1, 5]) == [
        GraphQuality(1, 19, 19 / 11, None, None, None, None, None),
        GraphQuality(5, 8, 8 / 11, None, None, None, None, None),
    ]
    row = graph_quality.graph_row(event, EDGES, "eom")
    assert (row["edges"], row["VD TPR"], row["connected share"]) == (19, None, None)


@pytest.mark.parametrize("hit_particle", [0, NOISE])
def test_an_event_of_one_hit(hit_particle):
    event = line_event([0])._replace(hit_particle=np.array([hit_particle], np.int32))
    row = graph_quality.graph_row(event, candidates([(0, 0)]), "hyper")
    is_noise = hit_particle == NOISE
    assert row["VD TPR"] == (None if is_noise else 1.0)
    assert row["VD FPR"] == (1.0 if is_noise else None)
    assert row["VD purity"] == (0.0 if is_noise else 1.0)
    assert (row["connected share"], row["fully connected"]) == (None, None)
    alone = graph_quality.particle_connectivity(event, *candidates([])[:2], min_hits=1)
    np.testing.assert_array_equal(alone.share, [] if is_noise else [1.0])


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_no_edges(node2node):
    row = graph_quality.graph_row(EVENT, candidates([]), node2node)
    assert (row["edges"], row["degree"], row["VD TPR"], row["VD FPR"]) == (0, 0.0, 0.0, 0.0)
    assert row["VD purity"] is None
    assert (row["connected share"], row["fully connected"]) == (0.25, 0.0)


def test_an_event_of_noise_alone_with_truth():
    noise = np.full(len(EVENT.position), NOISE, np.int32)
    row = graph_quality.graph_row(EVENT._replace(hit_particle=noise), EDGES, "hyper")
    assert (row["VD TPR"], row["VD purity"], row["connected share"]) == (None, 0.0, None)


def test_the_note_says_what_differs_and_nothing_else():
    note = graph_quality.topology_note("eom", "hyper")
    assert note.startswith("fitted with eom, judged against hyper: C counted neighbouring hits")
    assert note.endswith("all pairs of hits of a particle.")
    assert graph_quality.topology_note("eom", "eom") == ""
    with pytest.raises(ValueError, match="node2node=mst is unknown"):
        graph_quality.topology_note("mst", "mst")
    with pytest.raises(ValueError, match="node2node=mst is unknown"):
        graph_quality.graph_row(EVENT._replace(has_truth=False), EDGES, "mst")
