"""Weights, resolution, noise and bookkeeping, by hand and against the real event."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from hypertrack_jax.events.digitization import (
    NOISE_RATIO,
    RESOLUTION,
    Crossings,
    fire_cells,
    hit_weights,
    measure,
    noise_directions,
)
from hypertrack_jax.events.event import NOISE, validate_event
from hypertrack_jax.events.kinematics import GeneratedParticles
from hypertrack_jax.events.modules import Modules, read_modules
from hypertrack_jax.events.trackml import read_event

REAL = Path(__file__).parents[3] / "shared" / "data" / "trackml"
needs_real_event = pytest.mark.skipif(not REAL.is_dir(), reason="the real event is not here")

# Four hits lie at 0, 8/3, 16/3 and 8 on the nine weights 10, 8, 6, 5, 3, 3, 3, 5, 6.
FOUR = np.array([10, 6 - 2 / 3, 3, 6])
FOUR = FOUR / FOUR.sum()


def weights(hit_particle, flight, pt, has_weight=None):
    return hit_weights(
        np.array(hit_particle),
        np.array(flight, np.float64),
        np.array(pt, np.float64),
        np.ones(len(pt), bool) if has_weight is None else np.array(has_weight),
    )


def test_weights_of_one_particle_by_hand():
    np.testing.assert_allclose(weights([0] * 4, [1, 2, 3, 4], [0.3]), FOUR)
    np.testing.assert_allclose(weights([0] * 4, [30, 10, 40, 20], [0.3]), FOUR[[2, 0, 3, 1]])
    nine = np.array([10, 8, 6, 5, 3, 3, 3, 5, 6]) / 49
    np.testing.assert_allclose(weights([0] * 9, range(9), [9.0]), nine)


def test_weights_grow_with_pt_and_sum_to_one():
    # 0.2 up to 0.5 GeV, 1 from 3 GeV, straight between: 0.6 at 1.75 GeV.
    found = weights(np.repeat(range(4), 4), np.tile(range(4), 4), [0.2, 0.5, 1.75, 5])
    share = np.array([0.2, 0.2, 0.6, 1.0]) / 2
    np.testing.assert_allclose(found, np.outer(share, FOUR).ravel())


def test_short_and_excluded_particles_have_no_weight():
    particle = [0, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0]
    flight = [0, 0, 1, 2, 3, 1, 0, 1, 2, 3, 2]
    found = weights(particle, flight, [1, 1, 1], [True, True, False])
    np.testing.assert_allclose(found[1:5], FOUR)
    np.testing.assert_array_equal(found[[0, 5, 6, 7, 8, 9, 10]], 0)
    np.testing.assert_array_equal(weights([0, 0, 0], [1, 2, 3], [1]), 0)


def read_table(name):
    with gzip.open(REAL / f"{name}.csv.gz", "rt") as file:
        header = [column or "row" for column in file.readline().strip().split(",")]
        is_int = [c in ("row", "hit_id") or c.endswith("_id") for c in header]
        types = [(c, np.int64 if i else np.float64) for c, i in zip(header, is_int, strict=True)]
        return np.loadtxt(file, types, delimiter=",")


@needs_real_event
def test_weights_of_the_real_event():
    truth, particles = (read_table(f"event000000001-{name}") for name in ("truth", "particles"))
    particles.sort(order="particle_id")
    truth = truth[truth["particle_id"] != 0]
    particle = np.searchsorted(particles["particle_id"], truth["particle_id"])
    found = hit_weights(
        particle,
        np.abs(truth["tz"] - particles["vz"][particle]),
        np.hypot(particles["px"], particles["py"]),
        # A sub-particle number marks what was made in material.
        particles["particle_id"] & 0xFFFF == 0,
    )
    expected = truth["weight"] / truth["weight"].sum()
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=0)


@needs_real_event
def test_resolution_is_that_of_the_real_event():
    hits, truth = (read_table(f"event000000001-{name}") for name in ("hits", "truth"))
    modules = read_table("detectors")

    def key(table):
        return (table["volume_id"] * 100 + table["layer_id"]) * 10_000 + table["module_id"]

    modules.sort(order=["volume_id", "layer_id", "module_id"])
    module = modules[np.searchsorted(key(modules), key(hits))]
    error = [hits[axis] - truth[f"t{axis}"] for axis in "xyz"]
    u, v = (
        sum(
            module[f"rot_{axis}{uv}"] * component
            for axis, component in zip("xyz", error, strict=True)
        )
        for uv in "uv"
    )
    for volume, expected in RESOLUTION.items():
        here = hits["volume_id"] == volume
        np.testing.assert_allclose([u[here].std(), v[here].std()], expected, rtol=0.1)


@pytest.fixture(scope="module")
def toy_modules():
    """A tilted pixel module and a trapezoid of strips in the x-z plane."""
    return Modules(
        geometry_id=np.array([10, 20]),
        number=np.array([[8, 2, 1], [12, 4, 7]], np.int32),
        center=np.array([[100.0, 0, 0], [0, 500, 50]]),
        axes=np.array([[[0.8, 0, 0.6], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]]),
        half_size=np.array([[8.4, 8.4, 36], [24.2, 40, 78]]),
        pitch=np.array([[0.05, 0.05625], [0.08, 1.2]]),
        thickness=np.array([0.15, 0.5]),
        drift=np.array([0.12, 0]),
    )


@pytest.fixture(scope="module")
def measured(toy_modules):
    """3000 particles of 0, 4 and 8 crossings; every third one from material."""
    rng = np.random.default_rng(0)
    num = 3000
    particles = GeneratedParticles(
        vertex=rng.normal(size=(num, 3)),
        momentum=rng.normal(size=(num, 3)),
        pdg=np.resize(np.array([211, -211, 11], np.int32), num),
        collision=np.arange(num) // 100,
        is_material=np.arange(num) % 3 == 2,
        flight_limit=np.full(num, np.inf),
    )
    particle = rng.permutation(np.repeat(np.arange(num), np.resize([0, 4, 8], num)))
    module = rng.integers(2, size=len(particle))
    local = rng.uniform(-5, 5, (len(particle), 2, 1))
    crossings = Crossings(
        particle=particle,
        module=module,
        position=toy_modules.center[module] + (local * toy_modules.axes[module]).sum(axis=1),
        momentum=particles.momentum[particle] * 0.9,
    )
    return particles, measure(7, particles, crossings, toy_modules, rng, np.random.default_rng(1))


def test_measured_event_is_valid_and_in_order(measured):
    particles, (event, _, true_momentum, _) = measured
    validate_event(event, "measured")
    assert event.event_id == 7 and event.has_truth
    np.testing.assert_array_equal(event.hit_id, np.arange(1, len(event.hit_id) + 1))
    order = np.lexsort(event.module.T[::-1])
    np.testing.assert_array_equal(event.module[order], event.module)
    counted = np.bincount(event.hit_particle[event.hit_particle != NOISE], minlength=3000)
    np.testing.assert_array_equal(counted, event.particles.num_hits)
    np.testing.assert_array_equal(counted, np.resize([0, 4, 8], 3000))
    np.testing.assert_array_equal(event.particles.charge[:3], [1, -1, -1])
    np.testing.assert_allclose(event.particles.vertex, particles.vertex, rtol=1e-6)
    expected = np.where(
        event.hit_particle[:, None] == NOISE, 0, 0.9 * particles.momentum[event.hit_particle]
    )
    np.testing.assert_allclose(true_momentum, expected, rtol=1e-6)


def test_weights_reach_their_hits(measured):
    particles, (event, true_position, *_) = measured
    is_particle = event.hit_particle != NOISE
    particle = event.hit_particle[is_particle].astype(np.int64)
    expected = hit_weights(
        particle,
        np.abs(true_position[is_particle, 2] - particles.vertex[particle, 2]),
        np.hypot(particles.momentum[:, 0], particles.momentum[:, 1]),
        ~particles.is_material,
    )
    np.testing.assert_allclose(event.hit_weight[is_particle], expected, rtol=1e-9)
    np.testing.assert_array_equal(event.hit_weight[~is_particle], 0)
    np.testing.assert_allclose(event.hit_weight.sum(), 1)


def test_particle_ids_tell_kind_and_collision(measured):
    particles, (event, *_) = measured
    ids = event.particles.particle_id
    assert len(np.unique(ids)) == len(ids) and ids.min() > 0
    np.testing.assert_array_equal(ids >> 52, particles.collision + 1)
    np.testing.assert_array_equal(ids & 0xFFFF, particles.is_material)


def test_hits_are_smeared_in_the_plane_of_their_module(measured, toy_modules):
    event, true_position, *_ = measured[1]
    for module in (0, 1):
        volume = int(toy_modules.number[module, 0])
        here = (event.module[:, 0] == volume) & (event.hit_particle != NOISE)
        error = event.position[here].astype(np.float64) - true_position[here]
        local = error @ toy_modules.axes[module].T
        sigma = np.array(RESOLUTION[volume])
        np.testing.assert_allclose(local.std(axis=0), sigma, rtol=0.03)
        # Flat: no tails. The rest is the rounding of positions to float32.
        assert (np.abs(local).max(axis=0) < np.sqrt(3) * sigma + 1e-4).all()
        normal = np.cross(*toy_modules.axes[module])
        np.testing.assert_allclose(error @ normal, 0, atol=1e-4)


def test_noise_is_on_the_modules(measured, toy_modules):
    event, true_position, *_ = measured[1]
    noise = event.hit_particle == NOISE
    num_hits = (~noise).sum()
    expected = num_hits * NOISE_RATIO / (1 - NOISE_RATIO)
    assert abs(noise.sum() - expected) < 4 * np.sqrt(expected)
    np.testing.assert_array_equal(event.position[noise], true_position[noise])
    for module in (0, 1):
        here = noise & (event.module[:, 0] == toy_modules.number[module, 0])
        assert abs(here.sum() / noise.sum() - 0.5) < 4 * 0.5 / np.sqrt(noise.sum())
        error = event.position[here] - toy_modules.center[module]
        u, v = (error @ toy_modules.axes[module].T).T
        low, high, half_length = toy_modules.half_size[module]
        half_width = low + (high - low) * (v / half_length + 1) / 2
        for part in (np.abs(u) / half_width, np.abs(v) / half_length):
            assert part.max() < 1.0001
            assert abs(part.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(part))
        normal = np.cross(*toy_modules.axes[module])
        np.testing.assert_allclose(error @ normal, 0, atol=1e-4)


def test_the_place_in_a_module_does_not_tell_noise(measured):
    event = measured[1].event
    for volume in (8, 12):
        noise = (event.hit_particle == NOISE)[event.module[:, 0] == volume]
        place = np.flatnonzero(noise) / len(noise)
        assert abs(place.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(place))


def test_cells_change_nothing_else(toy_modules):
    rng = np.random.default_rng(2)
    particles = GeneratedParticles(
        vertex=np.zeros((1, 3)),
        momentum=np.ones((1, 3)),
        pdg=np.array([211], np.int32),
        collision=np.zeros(1, int),
        is_material=np.zeros(1, bool),
        flight_limit=np.full(1, np.inf),
    )
    crossings = Crossings(
        particle=np.zeros(100, int),
        module=rng.integers(2, size=100),
        position=rng.normal(size=(100, 3)),
        momentum=rng.normal(size=(100, 3)),
    )
    events = [
        measure(
            7,
            particles,
            crossings,
            toy_modules,
            np.random.default_rng(0),
            np.random.default_rng(seed),
        ).event
        for seed in (0, 1)
    ]
    for name in ("position", "hit_id", "hit_particle", "hit_weight", "module"):
        one, other = (getattr(event, name) for event in events)
        np.testing.assert_array_equal(one, other)
    one, other = (event.cells.charge for event in events)
    assert (one != other).any()


def test_noise_has_the_directions_of_the_real_event(toy_modules):
    rng = np.random.default_rng(0)
    num = 4000
    module = np.arange(num) % 2
    position = toy_modules.center[module] + rng.uniform(-5, 5, (num, 3))
    direction = noise_directions(toy_modules, module, position, rng)
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1)
    normal = np.cross(toy_modules.axes[module, 0], toy_modules.axes[module, 1])
    assert np.abs((direction * normal).sum(axis=1)).min() >= 0.1
    # These hits are far from the beam line, where angles are differences of angles. What is too
    # near to the plane of its module is missing.
    for one, other in ((1, 0), (2, None)):
        first, second = (
            np.arctan2(of[:, one], np.hypot(*of[:, :2].T) if other is None else of[:, other])
            for of in (direction, position)
        )
        turn = np.angle(np.exp(1j * (first - second)))
        assert np.abs(turn).max() <= np.pi / 4 + 1e-9
        np.testing.assert_allclose(np.abs(turn).mean(), np.pi / 8, rtol=0.1)


def paths(toy_modules, local, direction):
    """Hits at places of the two modules, given along u and v, with directions along u, v and w."""
    module = np.arange(len(local)) % 2
    axes = toy_modules.axes[module]
    frame = np.concatenate([axes, np.cross(axes[:, 0], axes[:, 1])[:, None]], axis=1)
    position = toy_modules.center[module] + np.einsum("ha,hax->hx", local, axes)
    return module, position, np.einsum("ha,hax->hx", direction, frame)


def test_cells_by_hand(toy_modules):
    # On the pixel module 0.15 mm of depth: u moves by 3 channels times slope - drift. 8.4 mm are
    # channel 168, 36 mm channel 640.
    local = np.array([[0.0125, 0.01], [0.0, 0.6]])
    direction = np.array([[0.12 + 1 / 3, 0.75, 1], [0, 0, -2]])
    hit, channel, value = fire_cells(
        toy_modules, *paths(toy_modules, local, direction), np.random.default_rng(0)
    )
    # One channel along u from 167.75 to 168.75; two along v from 639.18 to 641.18.
    assert hit.tolist() == [0, 0, 0, 0, 1]
    assert channel.tolist() == [[167, 639], [168, 639], [168, 640], [168, 641], [500, 65]]
    along = np.array([0.25, 0.4111, 0.9111, 1])
    length = 0.15 * np.sqrt(1 + direction[0, 0] ** 2 + direction[0, 1] ** 2)
    np.testing.assert_allclose(value[:4], np.diff(along, prepend=0) * length, rtol=0.4)
    assert value[4] == 1


def test_cells_are_those_that_the_path_goes_through(toy_modules):
    rng = np.random.default_rng(0)
    num = 200
    local = rng.uniform(-1, 1, (num, 2)) * np.where(np.arange(num) % 2, 50, 10)[:, None]
    direction = rng.normal(size=(num, 3)) * [1, 1, 0.5]
    module, position, global_direction = paths(toy_modules, local, direction)
    hit, channel, value = fire_cells(toy_modules, module, position, global_direction, rng)
    assert hit.tolist() == sorted(hit.tolist()) and set(hit.tolist()) == set(range(num))
    depth = np.linspace(-0.5, 0.5, 40001)[:, None]
    for index in range(num):
        own = channel[hit == index]
        of = module[index]
        half = np.array([toy_modules.half_size[of, 1], toy_modules.half_size[of, 2]])
        slope = direction[index, :2] / direction[index, 2] - [toy_modules.drift[of], 0]
        at = np.clip(local[index], -half, half) + slope * toy_modules.thickness[of] * depth
        steps = (at + half) / toy_modules.pitch[of]
        is_on = ((steps >= 0) & (steps < np.round(2 * half / toy_modules.pitch[of]))).all(axis=1)
        cells = np.floor(steps[is_on]).astype(int)
        is_new = np.any(np.diff(cells, axis=0, prepend=-1) != 0, axis=1)
        expected = {tuple(cell) for cell in cells[is_new].tolist()}
        found = {tuple(cell) for cell in own.tolist()}
        assert len(found) == len(own)
        # The steps may miss a cell in whose corner the path is shorter than they are.
        assert expected <= found and len(found - expected) <= 0.02 * len(found) + 1
        if of == 0 and is_on.all():
            length = 0.15 * np.linalg.norm(direction[index]) / abs(direction[index, 2])
            np.testing.assert_allclose(value[hit == index].sum(), length, rtol=0.4)
        if of == 1:
            assert set(value[hit == index].tolist()) == {1}


def test_charge_is_the_length_of_the_path_within_ten_percent(toy_modules):
    num = 4000
    local = np.full((num, 2), 0.025)
    module, position, direction = paths(toy_modules, local, np.tile([0.12, 0, 1], (num, 1)))
    hit, _, value = fire_cells(toy_modules, module, position, direction, np.random.default_rng(0))
    charge = value[hit % 2 == 0] / (0.15 * np.sqrt(1 + 0.12**2))
    assert len(charge) == num / 2
    np.testing.assert_allclose([charge.mean(), charge.std()], [1, 0.1], rtol=0.05)


@needs_real_event
def test_cells_are_those_of_the_real_event():
    with pytest.warns(UserWarning, match="the weights sum"):
        event = read_event(REAL, 1)
    truth = read_table("event000000001-truth")
    modules = read_modules("detectors", gzip.open(REAL / "detectors.csv.gz").read())
    key = np.array([2**48, 2**28, 1])
    module = np.searchsorted(modules.geometry_id, event.module @ key)
    position, direction = (
        np.stack([truth[name] for name in names], axis=1)
        for names in (("tx", "ty", "tz"), ("tpx", "tpy", "tpz"))
    )
    hit, channel, value = fire_cells(modules, module, position, direction, np.random.default_rng(0))
    cells = event.cells
    num_cells = np.bincount(hit, minlength=len(module))
    extent = np.stack(
        [[np.ptp(part, axis=0) + 1] for part in np.split(channel, np.cumsum(num_cells)[:-1])]
    )[:, 0]
    # Cell by cell where the hit says where its clusters lies: no drift moves it in the disks.
    is_disk = modules.drift[module] == 0
    assert (extent == cells.extent)[is_disk].all(axis=1).mean() > 0.985
    assert (num_cells == cells.num_cells)[is_disk].mean() > 0.98
    # In barrels the clusters begin at another place within their channel.
    for volume in (8, 13, 17):
        here = event.module[:, 0] == volume
        difference = extent[here].mean(axis=0) - cells.extent[here].mean(axis=0)
        assert (np.abs(difference) < 0.03 * cells.extent[here].mean(axis=0)).all()
    charge = np.bincount(hit, value, len(module))
    is_pixel = event.module[:, 0] < 10
    ratio = charge[is_pixel] / cells.charge[is_pixel]
    np.testing.assert_allclose(np.median(ratio), 1, atol=0.01)
