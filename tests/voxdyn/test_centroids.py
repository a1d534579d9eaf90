"""The centroid fit against plain Lloyd iterations in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.voxdyn.centroids import fit_centroids, lloyd_step


def blobs(rng, num_hits, num_blobs):
    centres = rng.uniform(-1000, 1000, (num_blobs, 3))
    return (centres[rng.integers(0, num_blobs, num_hits)] + rng.normal(0, 5, (num_hits, 3))).astype(
        np.float32
    )


def test_lloyd_step_is_the_mean_of_each_cell():
    rng = np.random.default_rng(0)
    position = blobs(rng, 500, 7)
    cell = rng.integers(0, 20, 500).astype(np.int32)
    cell[cell == 13] = 12
    before = rng.uniform(-1000, 1000, (20, 3)).astype(np.float32)
    centroids, num_hits = lloyd_step(jnp.asarray(before), position, cell)
    for k in range(20):
        mean = position[cell == k].astype(np.float64).mean(axis=0) if k != 13 else before[k]
        np.testing.assert_allclose(centroids[k], mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(num_hits, np.bincount(cell, minlength=20))


def test_objective_is_that_of_the_iteration_and_never_rises():
    position = blobs(np.random.default_rng(1), 2000, 30)
    fit = fit_centroids(position, 40, num_iterations=8, seed=3)
    assert (np.diff(fit.objective) <= 1e-6 * fit.objective[:-1]).all()
    for num_iterations in (0, 5):
        centroids = fit_centroids(position, 40, num_iterations, seed=3).centroids
        offset = position[:, None].astype(np.float64) - centroids[None]
        mean2 = (offset**2).sum(axis=-1).min(axis=1).mean()
        np.testing.assert_allclose(fit.objective[num_iterations], mean2, rtol=1e-4)


def test_same_seed_gives_the_same_centroids_and_another_seed_others():
    position = blobs(np.random.default_rng(2), 500, 10)
    first, again, other = (fit_centroids(position, 50, 3, seed).centroids for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_cells_left_empty_move_to_hits_far_from_their_centroid():
    """Most hits coincide, and so do most first centroids: all but one of these come out empty."""
    rng = np.random.default_rng(3)
    spread = rng.uniform(-1000, 1000, (60, 3))
    position = np.vstack([np.zeros((940, 3)), spread]).astype(np.float32)
    start = fit_centroids(position, 40, 0, seed=0).centroids
    assert len(np.unique(start, axis=0)) < 10
    fit = fit_centroids(position, 40, 10, seed=0)
    assert len(np.unique(fit.centroids, axis=0)) == 40
    assert fit.objective[-1] < 0.2 * fit.objective[0]


def test_fewer_different_hits_than_cells_leaves_cells_empty():
    position = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    fit = fit_centroids(position, 6, 4, seed=0)
    assert len(np.unique(fit.centroids, axis=0)) == 3
    assert fit.objective[-1] == 0


def test_more_cells_than_hits():
    with pytest.raises(ValueError, match=r"ncell=5 .* 4 particle hits"):
        fit_centroids(np.zeros((4, 3), np.float32), 5, 1, seed=0)
