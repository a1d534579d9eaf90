"""What hits tell of a track, against the helices that they lie on."""

import numpy as np
import pytest

from hypertrack_jax.evaluation.metrics import NO_CLUSTER
from hypertrack_jax.evaluation.track_shapes import track_shapes


def helix(pt, eta, phi, impact, sign, num_hits=9):
    """Points of a helix in 2 T that passes the beam line at a distance, in float64."""
    radius, angle = pt / (0.299792458e-3 * 2.0), np.linspace(0.05, 0.5, num_hits)
    nearest = impact * np.array([-np.sin(phi), np.cos(phi)])
    turned = phi + sign * angle
    x = nearest[0] + sign * radius * (np.sin(turned) - np.sin(phi))
    y = nearest[1] - sign * radius * (np.cos(turned) - np.cos(phi))
    return np.stack([x, y, 20 + radius * angle * np.sinh(eta)], axis=1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("impact", [0.0, 12.5, -40.0])
def test_a_helix_tells_what_it_was_made_of(sign, impact):
    truth = [(0.3, 1.2, 2.0), (1.5, -0.4, -1.0), (0.6, 2.2, 0.1)]
    tracks = [helix(pt, eta, phi, impact, sign) for pt, eta, phi in truth]
    position = np.concatenate([*tracks, np.full((2, 3), 7.0)])
    cluster = np.append(np.repeat(np.arange(3), 9), [NO_CLUSTER] * 2)
    mixed = np.random.default_rng(0).permutation(len(position))
    shapes = track_shapes(position[mixed], cluster[mixed])
    pt, eta, _ = np.transpose(truth)
    assert shapes["hits"].tolist() == [9, 9, 9]
    np.testing.assert_allclose(shapes["pT (GeV)"], pt, rtol=1e-6)
    np.testing.assert_allclose(shapes["abs(eta)"], np.abs(eta), rtol=1e-6)
    np.testing.assert_allclose(shapes["impact parameter (mm)"], abs(impact), atol=1e-6)


def test_straight_tracks_and_short_ones():
    """By hand: a line at y = 5, two points of a line through the beam line, and a single point."""
    position = np.array(
        [[10, 5, 0], [20, 5, 10], [30, 5, 20], [1, 1, 0], [2, 2, 0], [3, 0, 0]], np.float32
    )
    shapes = track_shapes(position, np.array([0, 0, 0, 1, 1, 2]))
    np.testing.assert_allclose(shapes["impact parameter (mm)"], [5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(shapes["abs(eta)"], [np.arcsinh(1), 0, 0], atol=1e-6)
    assert np.isinf(shapes["pT (GeV)"]).all()


def test_no_tracks():
    shapes = track_shapes(np.zeros((3, 3), np.float32), np.full(3, NO_CLUSTER))
    assert all(len(value) == 0 for value in shapes.values())
