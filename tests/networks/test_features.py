"""Geometry features of hits and pairs of hits, on hand-made helices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.networks.features import (
    CLIP,
    NUM_CYLINDRICAL,
    NUM_HELIX,
    arc_over_chord,
    count_feature,
    cylindrical_features,
    helix_features,
    scaled,
    without_direction,
)

CURVATURE = 1 / 700.0  # per mm
COT_THETA, Z0 = 0.8, 35.0
DIRECTION = 0.4  # radians, at the beam line


def point_on_helix(turn, sign):
    """A point of the helix from (0, 0, Z0), after it has turned by `turn` radians."""
    arc, radius = turn / CURVATURE, 2 * np.sin(turn / 2) / CURVATURE
    phi = DIRECTION + sign * turn / 2
    return np.array([radius * np.cos(phi), radius * np.sin(phi), Z0 + COT_THETA * arc])


def pair(first, second):
    return [jnp.asarray(np.atleast_2d(point), jnp.float32) for point in (first, second)]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("turns", [(0.05, 0.12), (0.12, 0.9), (1.3, 0.4)])
def test_two_points_give_the_helix(sign, turns):
    first, second = (point_on_helix(turn, sign) for turn in turns)
    feature = np.asarray(without_direction(helix_features(*pair(first, second)))[0])
    # A chord's softening by 1 mm costs 3e-4 here.
    assert abs(feature[4]) == pytest.approx(CURVATURE * 1000 / 2, rel=1e-3)
    assert np.sinh(feature[5]) == pytest.approx(COT_THETA, rel=1e-3)
    assert feature[6] * 200 == pytest.approx(Z0, abs=0.5)


@pytest.mark.parametrize("turns", [(0.05, 0.12), (0.12, 0.9)])
def test_outward_curvature_has_the_sign_of_the_turn(turns):
    for sign in (-1, 1):
        ends = pair(*(point_on_helix(turn, sign) for turn in turns))
        assert np.sign(helix_features(*ends)[0, 4]) == sign


def test_directed_features_of_a_hand_computed_pair():
    first, second = pair([300.0, 0.0, 100.0], [0.0, 400.0, -200.0])
    feature = np.asarray(helix_features(first, second)[0])
    eta = np.arcsinh([100 / 300, -200 / 400])
    np.testing.assert_allclose(feature[:4], [np.pi / 2, 0.1, -0.3, eta[1] - eta[0]], rtol=1e-5)
    # The straight line in (r, z) falls 3 mm per mm from (300, 100): 1000 mm at r = 0, clipped.
    assert feature[7] == CLIP
    second = jnp.asarray([[0.0, 400.0, 110.0]])
    assert helix_features(first, second)[0, 7] * 200 == pytest.approx(70, rel=1e-4)


def test_delta_phi_takes_the_short_way_round():
    first = jnp.asarray([[-100.0, 1.0, 0.0]])
    second = jnp.asarray([[-100.0, -1.0, 0.0]])
    assert helix_features(first, second)[0, 0] == pytest.approx(0.02, rel=1e-3)
    assert helix_features(second, first)[0, 0] == pytest.approx(-0.02, rel=1e-3)


def random_pairs(same_radius):
    rng = np.random.default_rng(0)
    first = rng.normal(0, 300, (200, 3))
    second = first + rng.normal(0, 60, (200, 3))
    if same_radius:
        second[:, :2] = first[:, :2]
    return jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)


@pytest.mark.parametrize("same_radius", [False, True])
def test_symmetric_features_do_not_know_the_direction(same_radius):
    first, second = random_pairs(same_radius)
    there, back = helix_features(first, second), helix_features(second, first)
    np.testing.assert_allclose(*map(without_direction, (there, back)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(there[:, :4], -back[:, :4], atol=1e-5)


@pytest.mark.parametrize("same_radius", [False, True])
def test_features_are_finite_clipped_and_as_many_as_said(same_radius):
    features = helix_features(*random_pairs(same_radius))
    assert features.shape == without_direction(features).shape == (200, NUM_HELIX)
    assert np.all(np.abs(features) <= CLIP)


def test_self_loops_have_finite_features_and_gradients():
    hits = jnp.asarray([[30.0, 10.0, -500.0], [1000.0, 0.0, 0.0]])

    def total(position):
        features = helix_features(position, position)
        return features.sum() + without_direction(features).sum()

    features = helix_features(hits, hits)
    np.testing.assert_array_equal(features[:, :5], np.zeros((2, 5)))
    assert np.all(np.isfinite(jax.grad(total)(hits)))


def test_padding_at_the_origin_has_finite_features():
    origin = jnp.zeros((1, 3))
    assert np.all(np.isfinite(helix_features(origin, origin)))
    assert np.all(np.isfinite(cylindrical_features(origin)))


def test_a_detector_of_another_size_is_seen_as_one_of_trackml():
    first, second = pair([300.0, 0.0, 100.0], [0.0, 400.0, -200.0])
    small = [scaled(0.25 * hits, 250.0) for hits in (first, second)]
    np.testing.assert_allclose(helix_features(*small), helix_features(first, second), rtol=1e-6)
    assert jnp.array_equal(scaled(first, 1000.0), first)


def test_cylindrical_features_of_a_hand_computed_hit():
    feature = cylindrical_features(jnp.asarray([[300.0, -400.0, 1200.0]]))
    assert feature.shape == (1, NUM_CYLINDRICAL)
    np.testing.assert_allclose(feature[0], [0.6, -0.8, 0.5, 1.2, np.arcsinh(2.4)], rtol=1e-6)


def test_arcs_over_chords_are_those_of_the_arcsine():
    """Against float64, where both pieces of the polynomial hold, and at their ends."""
    t = np.concatenate([np.linspace(0, 1, 20001)[1:], [1e-6, 1e-4, 0.5]]).astype(np.float32)
    exact = np.arcsin(t.astype(np.float64)) / t
    np.testing.assert_allclose(arc_over_chord(jnp.asarray(t)), exact, rtol=4e-7)
    ends = arc_over_chord(jnp.asarray([0.0, 1.5]))
    np.testing.assert_allclose(ends, [1, np.pi / 2], rtol=1e-6)
    slope = jax.vmap(jax.grad(arc_over_chord))(jnp.asarray([0.0, 0.3, 0.5, 0.8, 1.0, 1.5]))
    assert np.all(np.isfinite(slope))
    by_hand = 1 / (0.3 * np.sqrt(1 - 0.09)) - np.arcsin(0.3) / 0.09
    assert slope[1] == pytest.approx(by_hand, rel=1e-4)


def test_the_count_feature_is_a_logarithm_of_order_one():
    feature = np.asarray(count_feature(jnp.array([0, 1, 20, 403, 8103], jnp.int32)))
    np.testing.assert_allclose(feature[:, 0], [-1, -1, 0, 1, 2], atol=2e-3)
