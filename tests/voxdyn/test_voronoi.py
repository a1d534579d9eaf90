"""The fast search against an exhaustive one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.voxdyn import voronoi


def uniform(rng, num):
    return rng.uniform(-1000, 1000, (num, 3))


def shells(rng, num):
    """Thin cylinders whose density falls by orders of magnitude outwards, as in a detector."""
    radius = rng.choice([32.0, 72.0, 260.0, 1000.0], num)
    phi = rng.uniform(-np.pi, np.pi, num)
    points = np.stack([radius * np.cos(phi), radius * np.sin(phi), rng.normal(0, 500, num)], axis=1)
    return points + rng.normal(0, 0.01, points.shape)


def duplicates(rng, num):
    return rng.choice(uniform(rng, max(num // 10, 1)), num)


def lattice(rng, num):
    """Small whole numbers: many exact ties of distance."""
    return rng.integers(-4, 5, (num, 3))


def line(rng, num):
    return np.outer(rng.uniform(-1, 1, num), [1.0, 2.0, 3.0])


CLOUDS = [uniform, shells, duplicates, lattice, line]


def to_device(index):
    return jax.tree.map(jnp.asarray, index)


def brute_force(centroids, position):
    offset = position[:, None, :].astype(np.float64) - centroids[None, :, :].astype(np.float64)
    return (offset**2).sum(axis=-1)


def assert_nearest(cell, centroids, position):
    """No centroid is nearer beyond float32 rounding, and of exact ties the first is taken."""
    distance2 = brute_force(centroids, position)
    chosen2 = distance2[np.arange(len(cell)), cell]
    best2 = distance2.min(axis=1)
    np.testing.assert_array_less(chosen2, best2 * (1 + 1e-6) + 1e-30)
    is_exact = chosen2 == best2
    np.testing.assert_array_equal(cell[is_exact], distance2.argmin(axis=1)[is_exact])


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("num_cells", [1, 2, 3, 33, 1000])
def test_assignment_is_the_nearest_centroid(cloud, num_cells):
    rng = np.random.default_rng(num_cells)
    centroids = cloud(rng, num_cells).astype(np.float32)
    position = np.vstack(
        [
            cloud(rng, 300),
            uniform(rng, 50),
            centroids[:50],
            100 * uniform(rng, 20),
            1e6 * uniform(rng, 3),
        ]
    ).astype(np.float32)
    index = to_device(voronoi.build_index(centroids))
    cell = np.asarray(voronoi.assign_cells(index, position))
    assert_nearest(cell, centroids, position)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_exhaustive_assignment_is_the_nearest_centroid(cloud):
    rng = np.random.default_rng(0)
    centroids, position = (cloud(rng, num).astype(np.float32) for num in (150, 77))
    cell = np.asarray(voronoi.assign_exhaustive(centroids, position, tile=32))
    assert_nearest(cell, centroids, position)


@pytest.mark.parametrize("num_cells", [2, 33, 1000])
def test_any_start_leads_to_the_nearest_centroid(num_cells):
    rng = np.random.default_rng(1)
    centroids, position = (shells(rng, num).astype(np.float32) for num in (num_cells, 400))
    index = to_device(voronoi.build_index(centroids))
    start = rng.integers(0, num_cells, 400).astype(np.int32)
    cell, distance2 = jax.jit(voronoi.nearest_cells)(index, position, start)
    assert_nearest(np.asarray(cell), centroids, position)
    np.testing.assert_allclose(
        distance2, brute_force(centroids, position).min(axis=1), rtol=1e-5, atol=1e-12
    )


def test_one_hit():
    centroids = uniform(np.random.default_rng(2), 100).astype(np.float32)
    index = to_device(voronoi.build_index(centroids))
    assert voronoi.assign_cells(index, centroids[42:43]).tolist() == [42]


def test_equal_centroids_give_the_first():
    """More copies than the list holds, so that the tree has to find the first."""
    centroids = np.vstack([np.full((1, 3), 50.0), np.zeros((100, 3))]).astype(np.float32)
    index = to_device(voronoi.build_index(centroids))
    position = np.array([[1, 0, 0], [49, 50, 50], [0, 0, 0]], np.float32)
    assert voronoi.assign_cells(index, position).tolist() == [1, 0, 1]


def test_equal_centroids_in_several_leaves_give_the_first():
    """The tree takes -0.0 for smaller than 0.0: the leaf that is looked at first has later ones."""
    centroids = np.zeros((101, 3), np.float32)
    centroids[0], centroids[51:, 0] = 50, -0.0
    index = to_device(voronoi.build_index(centroids))
    hit, start = np.zeros((1, 3), np.float32), np.array([100], np.int32)
    cell, _ = voronoi.search_tree(index, hit, start, np.zeros(1, np.float32), np.zeros(1, bool))
    assert cell.tolist() == [1]


def test_moved_centroids_give_an_exact_index():
    rng = np.random.default_rng(3)
    before, after, position = (shells(rng, num).astype(np.float32) for num in (500, 500, 300))
    index = to_device(voronoi.move_centroids(voronoi.build_index(before), after))
    assert_nearest(np.asarray(voronoi.assign_cells(index, position)), after, position)


@pytest.mark.parametrize("num_cells", [1, 2, 33, 1000])
def test_descent_finds_the_cells_that_it_can_lead_to(num_cells):
    """A wrong turn would only make the search slower, and not show in its answer."""
    centroids = uniform(np.random.default_rng(11), num_cells).astype(np.float32)
    index = to_device(voronoi.build_index(centroids))
    entries = np.asarray(index.entry_cell)
    assert len(set(entries.tolist())) == len(entries) > num_cells / 2
    np.testing.assert_array_equal(voronoi.approximate_cells(index, centroids[entries]), entries)


def test_a_hit_on_a_split_goes_up():
    index = to_device(voronoi.build_index(np.array([[0, 0, 0], [2, 0, 0]], np.float32)))
    position = np.array([[1 - 2**-20, 0, 0], [1, 0, 0]], np.float32)
    assert voronoi.approximate_cells(index, position).tolist() == [0, 1]


def test_lists_settle_nearly_all_hits():
    """The tree is exact without the lists, but slow: without a guard their loss would not show."""
    rng = np.random.default_rng(4)
    centroids, position = (shells(rng, num).astype(np.float32) for num in (20_000, 5000))
    index = to_device(voronoi.build_index(centroids[voronoi.spatial_order(centroids)]))
    cell = voronoi.assign_cells(index, position)
    is_proven = voronoi.scan_lists(index, jnp.asarray(position), cell)[2]
    assert is_proven.mean() > 0.99
    # Where the descent ends is a worse cell to start from than the best one in its list.
    descended = voronoi.approximate_cells(index, position)
    one_list = voronoi.scan_lists(index, jnp.asarray(position), descended)[2].mean()
    two_lists = voronoi._descend_and_scan(index, jnp.asarray(position))[2].mean()
    assert one_list < 0.96 and two_lists > 0.97


def test_proof_never_claims_too_much():
    """From bad starts the lists prove less, never something wrong."""
    rng = np.random.default_rng(5)
    centroids, position = (uniform(rng, num).astype(np.float32) for num in (300, 2000))
    index = to_device(voronoi.build_index(centroids))
    nearest = brute_force(centroids, position).argsort(axis=1)[:, 3].astype(np.int32)
    scanned = voronoi.scan_lists(index, jnp.asarray(position), jnp.asarray(nearest))
    cell, _, is_proven = map(np.asarray, scanned)
    assert 0 < is_proven.mean() < 1
    assert_nearest(cell[is_proven], centroids, position[is_proven])


@pytest.mark.parametrize("num_cells", [1, 20, voronoi.LIST_LENGTH])
def test_a_list_of_all_centroids_is_a_proof_from_any_start(num_cells):
    rng = np.random.default_rng(15)
    centroids, position = (uniform(rng, num).astype(np.float32) for num in (num_cells, 50))
    index = to_device(voronoi.build_index(centroids))
    start = jnp.asarray(brute_force(centroids, position).argmax(axis=1).astype(np.int32))
    cell, _, is_proven = voronoi.scan_lists(index, jnp.asarray(position), start)
    assert is_proven.all()
    assert_nearest(np.asarray(cell), centroids, position)


def test_proof_allows_for_rounding():
    """From a start a metre away: where rounding alone decides, nothing may count as proven.

    The hit lies at 0. The farthest centroid in the start's list is 1e-5 mm from it, and the only
    one beyond the list 1e-6 mm, which rounding hides in a sum of 1000 mm.
    """
    rng = np.random.default_rng(14)
    proven = []
    for _ in range(40):
        along, other = rng.normal(size=(2, 3))
        along /= np.linalg.norm(along)
        across = np.cross(along, other)
        across *= 1e-5 / np.linalg.norm(across)
        near_start = 1000 * along + rng.normal(0, 10, (voronoi.LIST_LENGTH - 2, 3))
        centroids = np.vstack([1000 * along, near_start, across, -1e-6 * along])
        index = to_device(voronoi.build_index(centroids.astype(np.float32)))
        cell, _, is_proven = voronoi.scan_lists(index, jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32))
        assert cell.tolist() == [voronoi.LIST_LENGTH - 1]
        proven.append(bool(is_proven[0]))
    assert not any(proven)


@pytest.mark.parametrize("num_cells", [5, 31, 32, 33, 64, 4000])
def test_tree_finds_the_nearest_centroid_without_lists(num_cells):
    """Every hit on the stack, from the worst start: more nodes than one step opens."""
    rng = np.random.default_rng(7)
    centroids, position = (shells(rng, num).astype(np.float32) for num in (num_cells, 700))
    index = to_device(voronoi.build_index(centroids))
    distance2 = brute_force(centroids, position)
    worst = distance2.argmax(axis=1).astype(np.int32)
    cell, nearest2 = voronoi.search_tree(
        index,
        jnp.asarray(position),
        jnp.asarray(worst),
        jnp.asarray(distance2.max(axis=1).astype(np.float32)),
        jnp.zeros(700, bool),
    )
    assert_nearest(np.asarray(cell), centroids, position)
    np.testing.assert_allclose(nearest2, distance2.min(axis=1), rtol=1e-5, atol=1e-12)


def test_stack_holds_all_nodes_where_none_can_be_skipped(monkeypatch):
    """Hits in the middle of a sphere: every box reaches nearer than the nearest centroid."""
    while_loop = jax.lax.while_loop

    def ending_loop(condition, body, state):
        """Four times as many steps as it takes: a stack that loses nodes may never get empty."""
        return while_loop(
            lambda counted: (counted[0] < 1000) & condition(counted[1]),
            lambda counted: (counted[0] + 1, body(counted[1])),
            (0, state),
        )[1]

    monkeypatch.setattr(jax.lax, "while_loop", ending_loop)
    rng = np.random.default_rng(12)
    direction = rng.normal(size=(4000, 3))
    centroids = 100 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    # A number of hits that no other test has: the program must not have been compiled before.
    centroids, position = centroids.astype(np.float32), rng.normal(0, 0.1, (701, 3))
    position = position.astype(np.float32)
    index = to_device(voronoi.build_index(centroids))
    start = np.zeros(701, np.int32)
    start2 = brute_force(centroids, position)[:, 0].astype(np.float32)
    cell, _ = voronoi.search_tree(index, position, start, start2, np.zeros(701, bool))
    assert_nearest(np.asarray(cell), centroids, position)


def test_a_first_look_at_the_nearest_leaf_spares_most_of_the_search(monkeypatch):
    """Far from all centroids, and from the worst start: without it nearly all leaves are opened."""
    steps, open_nodes = [], voronoi._open_nodes

    def counted(*arguments):
        jax.debug.callback(steps.append, 1)
        return open_nodes(*arguments)

    monkeypatch.setattr(voronoi, "_open_nodes", counted)
    rng = np.random.default_rng(13)
    # A number of hits that no other test has: the program must not have been compiled before.
    centroids, position = shells(rng, 4000).astype(np.float32), 100 * uniform(rng, 61)
    position = position.astype(np.float32)
    distance2 = brute_force(centroids, position)
    index = to_device(voronoi.build_index(centroids))
    worst, worst2 = distance2.argmax(axis=1).astype(np.int32), distance2.max(axis=1)
    found = voronoi.search_tree(
        index, position, worst, worst2.astype(np.float32), np.zeros(61, bool)
    )
    assert_nearest(np.asarray(found[0]), centroids, position)
    jax.effects_barrier()
    assert 0 < len(steps) < 20


def test_tree_leaves_proven_hits_alone():
    rng = np.random.default_rng(8)
    centroids, position = (uniform(rng, num).astype(np.float32) for num in (500, 40))
    index = to_device(voronoi.build_index(centroids))
    start = rng.integers(0, 500, 40).astype(np.int32)
    start2 = brute_force(centroids, position)[np.arange(40), start].astype(np.float32)
    is_proven = np.arange(40) % 2 == 0
    cell, _ = voronoi.search_tree(index, position, start, start2, is_proven)
    np.testing.assert_array_equal(cell[is_proven], start[is_proven])
    assert_nearest(np.asarray(cell)[~is_proven], centroids, position[~is_proven])


@pytest.mark.parametrize("cloud", [uniform, shells, duplicates])
def test_many_cells(cloud):
    """Enough cells for all levels of the search, against the exhaustive one."""
    rng = np.random.default_rng(9)
    centroids = cloud(rng, 70_000).astype(np.float32)
    position = np.vstack(
        [cloud(rng, 300), uniform(rng, 100), 100 * uniform(rng, 10), 1e6 * uniform(rng, 5)]
    ).astype(np.float32)
    index = to_device(voronoi.build_index(centroids[voronoi.spatial_order(centroids)]))
    cell = np.asarray(voronoi.assign_cells(index, position))
    centroids = np.asarray(index.centroids)
    expected = np.asarray(voronoi.assign_exhaustive(centroids, position))
    offset = position[:, None].astype(np.float64) - centroids[np.stack([cell, expected], axis=1)]
    chosen2, best2 = (offset**2).sum(axis=-1).T
    np.testing.assert_allclose(chosen2, best2, rtol=1e-6)
    # From the farthest hits, many cells are as near as the nearest but for the rounding.
    assert (cell == expected)[:-5].mean() > 0.99


def test_memory_of_the_index_is_linear():
    rng = np.random.default_rng(10)
    for num_cells in (1000, 10_000):
        index = voronoi.build_index(uniform(rng, num_cells).astype(np.float32))
        assert sum(part.nbytes for part in index) < 620 * num_cells


def test_spatial_order_keeps_neighbours_together():
    rng = np.random.default_rng(6)
    points = uniform(rng, 777).astype(np.float32)
    order = voronoi.spatial_order(points)
    assert sorted(order.tolist()) == list(range(777))
    steps = np.linalg.norm(np.diff(points[order], axis=0), axis=1)
    random_steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.mean() < 0.4 * random_steps.mean()
