"""The study of what the shape of clusters is worth to a filter of pairs."""

import jax
import numpy as np
import pytest
from handmade import random_event, with_cells
from studies import cluster_shape
from studies.cluster_shape import (
    OF_FAR,
    Answers,
    PairSample,
    false_kept,
    measures,
    pair_logits,
    rotated_copies,
    table_rows,
    train_pairs,
)

from hypertrack_jax.events.event import NOISE, validate_event


def test_copies_are_the_same_event_turned_with_its_modules():
    event = with_cells(random_event(0, [4, 3], num_noise=2))
    copies = validate_event(rotated_copies(event, 3, np.random.default_rng(0)), "copies")
    assert len(copies.position) == 27 and len(copies.particles.particle_id) == 6
    np.testing.assert_array_equal(copies.particles.num_hits, np.tile(event.particles.num_hits, 3))
    counted = np.bincount(copies.hit_particle[copies.hit_particle != NOISE], minlength=6)
    np.testing.assert_array_equal(counted, copies.particles.num_hits)
    np.testing.assert_allclose(copies.hit_weight.sum(), 1)
    for part in np.split(np.arange(27), 3):
        position = copies.position[part]
        # The beam line stays, and all else moves.
        np.testing.assert_allclose(
            np.hypot(*position[:, :2].T), np.hypot(*event.position[:, :2].T), rtol=1e-5
        )
        assert np.abs(position - event.position).max() > 1
        # A hit's own direction crosses as many channels as before.
        crossed = np.einsum("hij,hj->hi", copies.cells.frame[part], position)
        expected = np.einsum("hij,hj->hi", event.cells.frame, event.position)
        np.testing.assert_allclose(crossed, expected, rtol=1e-3, atol=1e-2)
    assert rotated_copies(event._replace(cells=None), 2, np.random.default_rng(0)).cells is None


def test_false_pairs_at_the_efficiency_by_hand(monkeypatch):
    monkeypatch.setattr(cluster_shape, "EFFICIENCY", 0.75)
    # Of 0, 1, 2, 3, 4 the upper three quarters begin at 1.
    logit = np.array([0, 1, 2, 3, 4, 0.5, 0.9, 1.0, 7.0])
    is_true = np.arange(9) < 5
    assert false_kept(logit, is_true) == 0.5
    assert np.isnan(false_kept(logit, np.zeros(9, bool)))
    sample = PairSample(
        inputs=np.zeros((9, 1), np.float32),
        particle=np.where(is_true, 0, -1),
        volume=np.array([[8, 8]] * 4 + [[8, 7]] * 3 + [[13, 13]] * 2),
        radius=np.array([0, 0, 200, 0, 0.5, 0, 0, 0, 0.0]),
    )
    found = measures(logit, sample, 2.0)
    assert found["all"] == 0.5 and found[OF_FAR] == 1
    assert found["all, at the threshold of training"] == 0.25
    assert found["efficiency of pairs at that threshold"] == 0.6
    # Pixels: 0, 1, 2, 3, 4 against 0.5 and 0.9. In the barrel there are no false pairs.
    assert found["pixels"] == 0 and np.isnan(found["pixel barrel"])


def test_table_by_hand():
    simulated = [Answers({"all": 0.4}, {"all": 0.1}), Answers({"all": 0.4}, {"all": 0.2})]
    real = [Answers({"all": 0.5}, {"all": 0.25})]
    assert table_rows(simulated, real) == [
        ["all", "0.400", "0.150", "0.375 ± 0.177", "0.500", "0.250", "0.500", "0.75"]
    ]


@pytest.mark.parametrize(("num_inputs", "expected"), [(1, 0.5), (2, 0.98)])
def test_the_filter_learns_of_the_inputs_that_it_is_given(monkeypatch, num_inputs, expected):
    monkeypatch.setattr(cluster_shape, "BATCH", 256)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2000, 2)).astype(np.float32)
    is_true = np.abs(inputs[:, 1]) < 0.5
    sample = PairSample(inputs, np.where(is_true, 0, -1), np.full((2000, 2), 8), np.zeros(2000))
    # optax counts on implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        logit = pair_logits(train_pairs(sample, num_inputs, 200, 0), sample)
    assert logit.shape == (2000,)
    right = (logit[is_true][:, None] > logit[~is_true][None, :]).mean()
    assert abs(right - expected) < 0.1 if num_inputs == 1 else right > expected
