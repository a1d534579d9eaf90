"""What clusters say of pairs: against helices whose directions are known, and its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.events.cells import Cells
from hypertrack_jax.networks.cluster_shape import (
    MOST_CHANNELS,
    NUM_SHAPE,
    Clusters,
    crossed_channels,
    padded_clusters,
    shape_directions,
    shape_inputs,
)
from hypertrack_jax.networks.features import helix_coordinates

NUM = 64
HALF = NUM_SHAPE // 2
HELIX_U, HELIX_V, LINE_U, LINE_V, CHANNELS_U, CHANNELS_V, SLANT, CHARGE, EMPTY = range(HALF)
INNER, OUTER = np.arange(NUM), np.arange(NUM, 2 * NUM)


def turned(vectors, angle):
    x, y, z = vectors.T
    return np.stack(
        [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z], axis=1
    )


def frames(rng, number):
    """Modules at any angle: 1 to 8 channels of depth along u and v, and a drift along u."""
    axes = np.linalg.qr(rng.normal(size=(number, 3, 3)))[0]
    depth = rng.uniform(1, 8, (number, 2, 1))
    normal = np.cross(axes[:, 0], axes[:, 1])
    u = axes[:, 0] - rng.uniform(0, 0.2, (number, 1)) * normal
    return np.stack([depth[:, 0] * u, depth[:, 1] * axes[:, 1], normal], axis=1)


def helices(rng):
    """Inner and outer hits of helices from the beam line, and the directions there."""
    radius = rng.uniform(300, 3000, NUM) * rng.choice([-1, 1], NUM)
    slope, azimuth, z0 = rng.normal(size=NUM), rng.uniform(-3, 3, NUM), rng.normal(0, 50, NUM)
    hits, directions = [], []
    for arc in (rng.uniform(30, 100, NUM), rng.uniform(100, 200, NUM)):
        bend = arc / radius
        place = np.stack([radius * np.sin(bend), radius * (1 - np.cos(bend)), 0 * arc], axis=1)
        hits.append(turned(place, azimuth) + np.stack([0 * arc, 0 * arc, z0 + slope * arc], axis=1))
        heading = np.stack([np.cos(bend), np.sin(bend), slope], axis=1)
        directions.append(turned(heading, azimuth))
    return np.concatenate(hits), np.concatenate(directions)


def clusters_of(frame, direction):
    """Clusters as long as the channels crossed, to the fraction of a channel."""
    crossed = np.einsum("hij,hj->hi", frame, direction)
    channels = crossed[:, :2] / crossed[:, 2:]
    depth = np.linalg.norm(frame[:, 1], axis=1)
    charge = depth * 0.05625 * np.linalg.norm(direction, axis=1) / np.abs(crossed[:, 2])
    return Clusters(
        extent=np.abs(channels).astype(np.float32) + 1,
        slant=np.sign(channels.prod(axis=1)).astype(np.float32),
        charge=charge.astype(np.float32),
        is_cut=np.zeros(channels.shape, bool),
        frame=frame.astype(np.float32),
    )


@jax.jit
def seen(position, clusters, inner, outer):
    return shape_inputs(helix_coordinates(position), clusters, inner, outer)


def ends(position, clusters, inner=INNER, outer=OUTER):
    found = seen(
        jnp.asarray(position, jnp.float32),
        jax.tree.map(jnp.asarray, clusters),
        *map(jnp.asarray, (inner, outer)),
    )
    return np.asarray(found).reshape(-1, 2, HALF).transpose(1, 0, 2).reshape(-1, HALF)


@pytest.fixture(scope="module")
def event():
    """Hits of helices, whose modules they cross steeply enough, and clusters."""
    rng = np.random.default_rng(0)
    position, direction = helices(rng)
    frame = frames(rng, 2 * NUM)
    while (bad := np.abs((frame[:, 2] * direction).sum(1)) < 0.3).any():
        frame[bad] = frames(rng, bad.sum())
    return position, direction, clusters_of(frame, direction)


def test_helices_from_the_beam_line_agree_with_their_clusters(event):
    position, _, clusters = event
    found = ends(position, clusters)
    np.testing.assert_allclose(found[:, [HELIX_U, HELIX_V]], 0, atol=0.02)
    np.testing.assert_allclose(found[:, CHARGE], 0, atol=0.03)
    channels = clusters.extent - 1
    np.testing.assert_allclose(
        np.expm1(2 * found[:, CHANNELS_U]), channels[:, 0], atol=0.1, rtol=0.02
    )
    np.testing.assert_allclose(
        np.expm1(2 * found[:, CHANNELS_V]), channels[:, 1], atol=0.1, rtol=0.02
    )
    # The chord is another direction than the helix, by up to 10 degrees.
    assert np.abs(found[:, LINE_U]).max() > 0.1
    is_sure = channels.min(axis=1) > 1
    assert (found[is_sure, SLANT] > 0.7).all() and is_sure.sum() > 30
    assert not found[:, EMPTY].any()


def test_straight_particles_from_elsewhere_agree_with_the_line(event):
    rng = np.random.default_rng(1)
    direction = np.tile(rng.normal(size=(NUM, 3)), (2, 1))
    start = rng.normal(0, 200, (NUM, 3))
    position = np.concatenate([start, start + 100 * direction[:NUM]])
    found = ends(position, clusters_of(event[2].frame.astype(np.float64), direction))
    crossed = np.einsum("hij,hj->hi", event[2].frame, direction)
    is_short = np.abs(crossed[:, :2] / crossed[:, 2:]).max(axis=1) < 20
    assert is_short.sum() > NUM
    np.testing.assert_allclose(found[is_short][:, [LINE_U, LINE_V]], 0, atol=0.05)
    assert np.median(np.abs(found[is_short, HELIX_U])) > 0.1


def test_other_clusters_do_not_agree(event):
    position, _, clusters = event
    long = clusters._replace(extent=clusters.extent + np.array([3, 0], np.float32))
    found = ends(position, long)
    assert (found[:, HELIX_U] > 0.5).all()
    np.testing.assert_allclose(found[:, HELIX_V], 0, atol=0.02)
    merged = ends(position, clusters._replace(extent=clusters.extent + np.float32(1000)))
    assert np.abs(merged).max() <= 5 and np.isfinite(merged).all()
    other = ends(position, clusters._replace(slant=-clusters.slant, charge=2 * clusters.charge))
    np.testing.assert_allclose(other[:, SLANT], -ends(position, clusters)[:, SLANT])
    assert (other[:, CHARGE] > 1).all()


def test_clusters_at_the_edge_of_a_module_may_be_too_short_but_not_too_long(event):
    position, _, clusters = event
    short = clusters._replace(extent=np.maximum(clusters.extent - 3, 1), charge=clusters.charge / 2)
    is_long = (clusters.extent > 4).all(axis=1)
    whole = ends(position, short)[is_long]
    assert (whole[:, [HELIX_U, LINE_U, HELIX_V, LINE_V]] < -0.4).mean() > 0.9
    assert (whole[:, CHARGE] < -1).all()
    along_v = np.zeros_like(clusters.is_cut)
    along_v[:, 1] = True
    cut = ends(position, short._replace(is_cut=along_v))[is_long]
    np.testing.assert_array_equal(cut[:, [HELIX_U, LINE_U]], whole[:, [HELIX_U, LINE_U]])
    np.testing.assert_allclose(cut[:, [HELIX_V, CHARGE]], 0, atol=0.02)
    long = clusters._replace(extent=clusters.extent + 3, is_cut=~along_v | along_v)
    assert (ends(position, long)[:, HELIX_V] > 0.4).all()


def test_turns_mirrors_and_signs_change_nothing(event):
    position, _, clusters = event
    expected = ends(position, clusters)
    for matrix in (np.diag([1, 1, -1]), np.diag([-1, 1, 1]), turned(np.eye(3), 0.7).T):
        frame = clusters.frame @ matrix.T.astype(np.float32)
        found = ends(position @ matrix.T, clusters._replace(frame=frame))
        np.testing.assert_allclose(found, expected, atol=5e-3)
    # The normal may point to either side, and u and v either way; the slant then goes along.
    for signs in ([1, 1, -1], [-1, -1, 1], [-1, 1, 1]):
        frame = clusters.frame * np.array(signs, np.float32)[:, None]
        slant = clusters.slant * np.float32(signs[0] * signs[1])
        found = ends(position, clusters._replace(frame=frame, slant=slant))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_hits_without_cells_say_that_alone(event):
    position, _, clusters = event
    none = Clusters(*(np.zeros_like(part) for part in clusters))
    found = ends(position, none)
    assert (found[:, EMPTY] == 1).all() and not found[:, :EMPTY].any()
    # Two hits at one place, and a module that is grazed, are no numbers out of range.
    same = ends(np.repeat(position[:NUM], 2, axis=0), clusters)
    assert np.isfinite(same).all()
    grazed = crossed_channels(jnp.asarray(clusters.frame[:1]), jnp.asarray(clusters.frame[:1, 0]))
    assert np.abs(np.asarray(grazed)).max() <= MOST_CHANNELS


def test_padding_has_no_cells():
    cells = Cells(
        extent=np.array([[1, 2], [3, 4]], np.int32),
        num_cells=np.ones(2, np.int32),
        charge=np.array([0.1, 0.2], np.float32),
        slant=np.array([0.5, -0.5], np.float32),
        is_cut=np.array([[False, True], [True, False]]),
        frame=np.ones((2, 3, 3), np.float32),
    )
    padded = padded_clusters(cells, 5)
    assert padded.extent.tolist() == [[1, 2], [3, 4], [0, 0], [0, 0], [0, 0]]
    assert [len(part) for part in padded] == [5] * 5
    assert not any(part[2:].any() for part in padded)


def test_a_cluster_suggests_the_direction_of_its_particle(event):
    position, direction, clusters = event
    suggested = np.asarray(
        shape_directions(jax.tree.map(jnp.asarray, clusters), jnp.asarray(position, jnp.float32))
    )
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    away = position / np.linalg.norm(position, axis=1, keepdims=True)
    # One of the directions that signs leave open is right, and no other is nearer to straight away.
    crossed = np.einsum("hij,hj->hi", clusters.frame, suggested)
    channels = np.abs(crossed[:, :2] / crossed[:, 2:])
    np.testing.assert_allclose(channels, clusters.extent - 1, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(np.sign(crossed[:, 0] * crossed[:, 1]), clusters.slant)
    right, found = (unit * away).sum(axis=1), (suggested * away).sum(axis=1)
    assert (found > np.abs(right) - 1e-4).all()
    assert ((suggested * unit).sum(axis=1) > 0.999).mean() > 0.7
    none = Clusters(*(jnp.zeros_like(jnp.asarray(part)) for part in clusters))
    np.testing.assert_allclose(
        shape_directions(none, jnp.asarray(position, jnp.float32)), away, atol=1e-6
    )
