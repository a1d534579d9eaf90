"""Simulated events: reproducible, physical, and in the format of the real ones."""

import gc
import importlib.util
import sys
import tracemalloc

import numpy as np
import pytest
from handmade import assert_same_event
from studies.turning_field import field_table

from hypertrack_jax.errors import UserError
from hypertrack_jax.events import simulation
from hypertrack_jax.events.digitization import RESOLUTION
from hypertrack_jax.events.event import NOISE, validate_event
from hypertrack_jax.events.kinematics import generate_particles, pseudorapidity
from hypertrack_jax.events.modules import write_detector_csv
from hypertrack_jax.events.simulation import generic_detector, simulate_event
from hypertrack_jax.events.trackml import read_event, write_event_csv

needs_acts = pytest.mark.skipif(
    importlib.util.find_spec("acts") is None,
    reason="needs the extra sim: pip install 'hypertrack-jax[sim]'",
)


@pytest.fixture(scope="module")
def simulated():
    """About 2e4 hits."""
    return simulate_event(1000, 40, 3)


@pytest.fixture(scope="module")
def in_two_tesla():
    """The same particles in 2 T everywhere."""
    return simulate_event(1000, 40, 3, "uniform")


@pytest.fixture(scope="module")
def generated():
    """The particles that `simulated` began with."""
    return generate_particles(40, np.random.default_rng([3, 1000]))


def module_of_hits(event):
    """Index of the module of every hit."""
    number = generic_detector().modules.number.astype(np.int64)
    key = [(n[:, 0] * 100 + n[:, 1]) * 10_000 + n[:, 2] for n in (number, event.module)]
    return np.searchsorted(*key)


@needs_acts
def test_an_event_depends_on_its_seed_and_number_alone(simulated):
    others = [simulate_event(i, 40, seed) for i, seed in ((1001, 3), (1000, 4))]
    again = simulate_event(1000, 40, 3)
    assert_same_event(again.event, simulated.event)
    np.testing.assert_array_equal(again.true_position, simulated.true_position)
    np.testing.assert_array_equal(again.true_momentum, simulated.true_momentum)
    for other in others:
        assert not np.array_equal(other.event.position[:5], simulated.event.position[:5])


@needs_acts
def test_particles_turn_less_in_the_disks_of_a_solenoid(simulated, in_two_tesla):
    """They turn as in 2 T at the centre alone."""
    other = in_two_tesla
    np.testing.assert_array_equal(
        other.event.particles.momentum, simulated.event.particles.momentum
    )
    rows = field_table([simulated.event], [other.event])
    fields = np.array([[float(cell.split()[0]) for cell in row[1:]] for row in rows])
    np.testing.assert_allclose(fields[:, 1], 2.0, atol=0.03)
    assert abs(fields[0, 0] - 2.0) < 0.03 and fields[-1, 0] < 1.0
    assert (np.diff(fields[:, 0]) < 0).all()
    with pytest.raises(UserError, match=r"^field='none': choose one of solenoid, uniform\.$"):
        simulate_event(1000, 40, 3, "none")


@needs_acts
def test_event_is_valid_and_has_the_generated_particles(simulated, generated):
    event = validate_event(simulated.event, "simulated")
    np.testing.assert_allclose(event.hit_weight.sum(), 1)
    np.testing.assert_array_equal(event.particles.momentum, generated.momentum.astype(np.float32))
    assert 5000 < len(event.position) < 80_000


@needs_acts
def test_detector_is_that_of_trackml():
    modules = generic_detector().modules
    assert len(modules.geometry_id) == 18728
    assert set(modules.number[:, 0].tolist()) == set(RESOLUTION)
    np.testing.assert_array_equal(np.diff(modules.geometry_id) > 0, True)
    lengths = np.linalg.norm(modules.axes, axis=2)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    np.testing.assert_allclose((modules.axes[:, 0] * modules.axes[:, 1]).sum(axis=1), 0, atol=1e-6)
    # Half sizes by volume, from TrackML's detectors.csv.
    for volume, sizes in {
        8: [[8.4, 8.4, 36]],
        13: [[24, 24, 54]],
        12: [[20.3, 24.2, 78], [28.6, 32.2, 78], [36.3, 40, 78]],
    }.items():
        found = np.unique(modules.half_size[modules.number[:, 0] == volume], axis=0)
        np.testing.assert_allclose(found[:, 1:], np.array(sizes)[:, 1:])
        assert (found[:, 0] <= found[:, 1]).all()
        if volume == 12:
            assert (found[:, 0] < found[:, 1]).all()


@needs_acts
def test_hits_lie_on_their_modules(simulated):
    event, true_position, *_ = simulated
    modules = generic_detector().modules
    module = module_of_hits(event)
    offset = true_position - modules.center[module]
    local = np.einsum("nax,nx->na", modules.axes[module], offset)
    off_plane = offset - np.einsum("na,nax->nx", local, modules.axes[module])
    assert np.abs(off_plane).max() < 0.01
    assert (np.abs(local) <= modules.half_size[module, 1:] + 0.01).all()

    error = np.einsum("nax,nx->na", modules.axes[module], event.position - true_position)
    is_particle = event.hit_particle != NOISE
    for volume in (7, 8, 9, 13):
        here = is_particle & (event.module[:, 0] == volume)
        np.testing.assert_allclose(error[here].std(axis=0), RESOLUTION[volume], rtol=0.15)


@needs_acts
def test_particles_are_lost_where_they_interact(simulated, generated):
    event = simulated.event
    hit = np.flatnonzero(event.hit_particle != NOISE)
    particle = event.hit_particle[hit]
    distance = np.linalg.norm(simulated.true_position[hit] - generated.vertex[particle], axis=1)
    assert (distance < generated.flight_limit[particle] + 1e-3).all()
    # And not before: those that are not lost go on beyond where the others end.
    hard = np.hypot(*generated.momentum[:, :2].T) > 0.5
    free = hard & np.isinf(generated.flight_limit) & ~generated.is_material
    early = hard & (generated.flight_limit < 300)
    num_hits = event.particles.num_hits
    assert free.sum() > 200 and early.sum() >= 5
    assert num_hits[free].mean() > 10 > 7 > num_hits[early].mean()


@needs_acts
def test_soft_particles_leave_no_hits(simulated, generated):
    pt = np.hypot(*generated.momentum[:, :2].T)
    num_hits = simulated.event.particles.num_hits
    central = (np.abs(pseudorapidity(generated.momentum)) < 3) & ~generated.is_material
    central &= np.isinf(generated.flight_limit) & (np.hypot(*generated.vertex[:, :2].T) < 1)
    assert (pt < 0.15).sum() > 10
    assert num_hits[pt < 0.15].max() == 0
    # Down to the threshold: Fatras has one of its own.
    just_above = central & (pt > 0.15) & (pt < 0.3)
    assert just_above.sum() > 20
    assert (num_hits[just_above] >= 4).mean() > 0.95


@needs_acts
def test_tracks_bend_as_in_a_field_of_two_tesla(in_two_tesla, generated):
    event, position, momentum, _ = in_two_tesla
    pt = np.hypot(*generated.momentum[:, :2].T)
    chosen = (pt > 1) & (event.particles.num_hits >= 6) & (np.abs(generated.pdg) == 211)
    ratios = []
    for particle in np.flatnonzero(chosen):
        hits = np.flatnonzero(event.hit_particle == particle)
        start, end = hits[np.argsort(np.hypot(*position[hits, :2].T))[[0, -1]]]
        direction = np.arctan2(momentum[[start, end], 1], momentum[[start, end], 0])
        turn = (direction[1] - direction[0] + np.pi) % (2 * np.pi) - np.pi
        chord = np.hypot(*(position[end] - position[start])[:2])
        radius = np.hypot(*momentum[start, :2]) / (0.299792458e-3 * 2)
        # A positive particle turns clockwise around a field along +z.
        expected = -np.sign(generated.pdg[particle]) * 2 * np.arcsin(chord / (2 * radius))
        ratios.append(turn / expected)
    assert len(ratios) >= 10
    np.testing.assert_allclose(np.median(ratios), 1, atol=0.03)
    # GeV, and before much is lost in the material.
    hits = np.flatnonzero(np.isin(event.hit_particle, np.flatnonzero(chosen)))
    particle = event.hit_particle[hits]
    kept = np.linalg.norm(momentum[hits], axis=1) / np.linalg.norm(
        generated.momentum[particle], axis=1
    )
    assert 0.97 < np.median(kept) <= 1


@needs_acts
def test_soft_particles_scatter_more(simulated, generated):
    event, position, momentum, _ = simulated
    pt = np.hypot(*generated.momentum[:, :2].T)
    central = np.abs(pseudorapidity(generated.momentum)) < 1
    kinks = []
    for low, high in ((0.2, 0.4), (1, 5)):
        chosen = central & (pt > low) & (pt < high) & (event.particles.num_hits >= 8)
        assert chosen.sum() >= 10
        kink = []
        for particle in np.flatnonzero(chosen):
            hits = np.flatnonzero(event.hit_particle == particle)
            start, end = hits[np.argsort(np.hypot(*position[hits, :2].T))[[0, -1]]]
            # The field along z leaves the polar angle alone; only material changes it.
            polar = np.arctan2(np.hypot(*momentum[[start, end], :2].T), momentum[[start, end], 2])
            kink.append(abs(polar[1] - polar[0]))
        kinks.append(np.median(kink))
    soft, hard = kinks
    # 13.6 MeV / p sqrt(x / X0) with about a fifth of a radiation length (PDG): 20 and 4 mrad.
    assert 0.005 < soft < 0.05
    assert 0.0005 < hard < 0.3 * soft


@needs_acts
def test_fatras_has_another_seed_in_every_event(monkeypatch):
    seeds = []
    run_fatras = simulation._run_fatras

    def remember(detector, particles, field, seed):
        seeds.append(seed)
        return run_fatras(detector, particles, field, seed)

    monkeypatch.setattr(simulation, "_run_fatras", remember)
    for event_id, seed in ((0, 0), (1, 0), (0, 1)):
        simulate_event(event_id, 5, seed)
    assert len(set(seeds)) == len(seeds) >= 3


@needs_acts
def test_cells_have_a_random_stream_of_their_own(simulated, monkeypatch):
    monkeypatch.setattr(simulation, "stream", lambda *name: np.random.default_rng(7))
    event, *_, fired = simulate_event(1000, 40, 3)
    for name in ("position", "hit_particle", "hit_weight", "module"):
        np.testing.assert_array_equal(getattr(event, name), getattr(simulated.event, name))
    assert (event.cells.charge != simulated.event.cells.charge).mean() > 0.3
    np.testing.assert_array_equal(event.cells.num_cells, np.bincount(fired.hit))


@needs_acts
def test_csv_round_trip(tmp_path, simulated):
    write_detector_csv(tmp_path, generic_detector().modules)
    write_event_csv(tmp_path, *simulated)
    assert_same_event(read_event(tmp_path, 1000), simulated.event)


@needs_acts
def test_nothing_is_printed(capfd, simulated):
    simulate_event(1002, 50, 0)
    assert capfd.readouterr() == ("", "")


@needs_acts
def test_nearly_empty_crossings_are_drawn_anew():
    for event_id in range(60):
        event = simulate_event(event_id, 0.01, 0).event
        np.testing.assert_allclose(event.hit_weight.sum(), 1)


def test_without_pyacts_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "acts", None)
    with pytest.raises(ImportError, match=r"pip install 'hypertrack-jax\[sim\]'"):
        simulate_event(0, 1, 0)


@pytest.mark.parametrize(
    ("event_id", "seed", "message"),
    [
        (-1, 0, "event_id=-1: expected a"),
        (0, -5, "seed=-5: expected a"),
        (0, 2**63, "seed=9223372"),
    ],
)
def test_negative_seed_or_event(event_id, seed, message):
    with pytest.raises(ValueError, match=message):
        simulate_event(event_id, 1, seed)


@needs_acts
def test_nothing_of_an_event_stays_in_memory():
    simulate_event(1, 10, 0)
    tracemalloc.start()
    for event_id in range(2, 5):
        crossings = simulate_event(event_id, 10, 0).true_position.nbytes
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < crossings
