"""What continues each edge: against a loop over triplets, and on a helix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_pairs import EVENT, NUM_HITS, coordinates_of, toy_pairs

from hypertrack_jax import device
from hypertrack_jax.graph.pair_graph import HitPairs, pair_graph
from hypertrack_jax.networks import continuations as continuation_room
from hypertrack_jax.networks.continuations import (
    BEND,
    DIP,
    FAR,
    LOGIT,
    Z0,
    chords_of,
    continuations,
    end_of,
)


@pytest.fixture(scope="module")
def pairs():
    return toy_pairs()


@pytest.mark.parametrize(("block", "width"), [(7, 2), (512, 512)])
def test_continuations_are_those_of_a_loop_over_triplets(pairs, block, width, monkeypatch):
    monkeypatch.setattr(device, "CPU", device.CPU._replace(filter_hits=block))
    monkeypatch.setattr(continuation_room, "LEAST_WIDTH", width)
    graph = pair_graph(pairs, NUM_HITS + 1)
    coordinates = coordinates_of(np.pad(EVENT.position, ((0, 1), (0, 0))))
    logit = pairs.logit[graph.pair]
    bend = jnp.asarray(np.random.default_rng(2).normal(size=len(logit)), jnp.float32)
    chords = chords_of(coordinates, graph.senders, graph.receivers, logit, bend)
    largest = int(graph.degree.max())
    found = jax.jit(continuations, static_argnums=3)(chords, graph.start, graph.degree, largest + 3)
    # Read a thousand times below.
    found = jax.device_get(found)
    c = {name: np.asarray(part, np.float64) for name, part in chords._asdict().items()}
    receivers, num_edges = np.asarray(graph.receivers), 2 * int(pairs.number)
    vector = np.stack([c["x"], c["y"], c["z"]], axis=1)
    alone = 0
    for a in range(num_edges):
        beside = [b for b in np.flatnonzero(receivers == receivers[a]) if vector[a] @ vector[b] < 0]
        assert found.number[a] == len(beside)
        for kind in (0, 1):
            turn = (c["y"][a] * c["x"] - c["x"][a] * c["y"]) / (c["length"][a] * c["length"])
            turn = np.abs(turn - c["bend"][a] * (c["length"][a] + c["length"]) / 1000)
            bend = (np.abs(c["kappa"][a] + c["kappa"]), turn)[kind]
            distance = DIP[kind] * np.abs(c["dip"][a] + c["dip"]) + BEND[kind] * bend
            distance += Z0[kind] * np.abs(c["z0"][a] - c["z0"])
            mismatch = distance - LOGIT[kind] * c["logit"]
            if not beside:
                alone += 1
                assert found.mismatch[kind][a] == FAR
                assert found.soft_count[kind][a] == 0
                continue
            best = min(beside, key=lambda b: mismatch[b])
            assert found.mismatch[kind][a] == pytest.approx(mismatch[best], abs=1e-3)
            assert mismatch[found.edge[kind][a]] == pytest.approx(mismatch[best], abs=1e-3)
            soft = sum(np.exp(-distance[b]) / (1 + np.exp(-c["logit"][b])) for b in beside)
            assert found.soft_count[kind][a] == pytest.approx(soft, rel=1e-3, abs=1e-5)
    assert 0 < alone < num_edges


def test_the_circle_through_three_hits_of_a_helix_is_its_own():
    """Hits of one particle: the best continuation fits, and the inputs of its end are small."""
    particle = int(np.argmax(EVENT.particles.num_hits))
    hits = np.flatnonzero(EVENT.hit_particle == particle)
    hits = hits[np.argsort(np.hypot(*EVENT.position[hits, :2].T))]
    position = np.pad(EVENT.position[hits], ((0, 1), (0, 0)))
    one = jnp.arange(1, len(hits), dtype=jnp.int32)
    logit = jnp.zeros(len(one))
    pairs = HitPairs(one, one - 1, jnp.ones_like(one), logit, jnp.int32(len(one)))
    graph = pair_graph(pairs, len(position))
    nothing = jnp.zeros(2 * len(one))
    chords = chords_of(coordinates_of(position), graph.senders, graph.receivers, nothing, nothing)
    found = continuations(chords, graph.start, graph.degree, 2)
    every = jnp.arange(2 * len(one), dtype=jnp.int32)
    inputs = np.asarray(end_of(chords, found, every).inputs)
    goes_on = np.asarray(found.number) == 1
    assert goes_on.sum() == 2 * (len(one) - 1)
    # Differences in dip, and between the circle and both curvatures.
    assert np.median(inputs[goes_on, 1:4], axis=0).max() < 0.5
    assert (inputs[~goes_on, :8] == 3).all()
