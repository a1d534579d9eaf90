"""What the filter leaves, against sets made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.evaluation import filter_quality
from hypertrack_jax.evaluation.filter_quality import filter_rows
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.reconstruction.candidates import CandidateEdges
from hypertrack_jax.voxdyn.fit import fit_voxdyn

EVENT = helix_event(2, num_particles=5)
NUM_HITS = len(EVENT.position)


def edges_of(pairs):
    both = sorted({(r, s) for r, s in pairs} | {(s, r) for r, s in pairs})
    receivers, senders = (np.array(end, np.int32) for end in zip(*both, strict=True))
    return CandidateEdges(senders, receivers, np.ones(len(both), np.int32))


@pytest.fixture
def rows(monkeypatch):
    """Raw: all pairs of a particle, a self-loop for each hit, and noise; then less and less."""
    particle = EVENT.hit_particle
    hits = [np.flatnonzero(particle == k).tolist() for k in range(5)]
    own = [(i, j) for of in hits for i in of for j in of if j < i]
    false = [(hits[0][k], hits[1][k]) for k in range(4)] + [(hits[2][0], hits[3][0])]
    # The last stage has only chains of each particle, that of the first cut in two halves.
    chains = [pair for of in hits for pair in zip(of[1:], of[:-1], strict=True)]
    half = len(hits[0]) // 2
    chains.remove((hits[0][half], hits[0][half - 1]))
    loops = [(i, i) for i in range(NUM_HITS)]
    by_stage = [own + false, own + false[:2], chains + false[:1]]
    asked = []

    def made(voxdyn, position, min_count, weights=None, cells=None):
        if weights is None:
            return edges_of(own + false + loops)
        asked.append(np.isneginf(np.asarray(weights.thresholds)).tolist())
        return edges_of(by_stage[len(asked) - 1])

    monkeypatch.setattr(filter_quality, "predict_edges", made)
    weights = init_filter(jax.random.key(0), 4)._replace(thresholds=jnp.ones(3))
    displaced = EVENT.particles._replace(vertex=EVENT.particles.vertex.copy())
    displaced.vertex[0] = [0, 40, 3]
    event = EVENT._replace(particles=displaced)
    voxdyn = fit_voxdyn([EVENT], 16, "hyper", num_iterations=1)
    found = list(filter_rows(voxdyn, weights, [event]))
    assert asked == [[False, True, True], [False, False, True], [False, False, False]]
    return found, len(own), len(false), len(chains), hits


def test_shares_are_those_of_the_sets(rows):
    (row,), num_own, num_false, num_chains, _ = rows
    raw = num_own + num_false
    assert row["edges"] == 2 * raw
    assert row["pairs kept"] == row["pairs TPR"] == 1
    assert row["first kept"] == pytest.approx((num_own + 2) / raw)
    assert row["first TPR"] == 1
    assert row["second kept"] == pytest.approx((num_chains + 1) / raw)
    assert row["second TPR"] == pytest.approx(num_chains / num_own)
    assert row["purity before"] == pytest.approx(num_own / raw)
    assert row["purity"] == pytest.approx(num_chains / (num_chains + 1))


def test_a_particle_in_two_halves_is_out_of_reach(rows):
    (row,), *_, hits = rows
    larger = len(hits[0]) - len(hits[0]) // 2
    reached = 2 * larger > len(hits[0]) and larger >= 4
    assert row["bound before"] == row["displaced before"] == 1
    assert row["bound"] == pytest.approx((4 + reached) / 5)
    assert row["displaced"] == float(reached)
    assert not reached
