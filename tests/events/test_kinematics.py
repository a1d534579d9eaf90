"""Drawn particles have the distributions that the module documents."""

from pathlib import Path

import numpy as np
import pytest

from hypertrack_jax.events import kinematics
from hypertrack_jax.events.kinematics import (
    NEUTRAL_HADRONS,
    GeneratedParticles,
    charge_of,
    draw_decays,
    first_interaction,
    generate_particles,
    pseudorapidity,
    two_body_decay,
)
from hypertrack_jax.events.trackml import read_event

REAL = Path(__file__).parents[3] / "shared" / "data" / "trackml"


@pytest.fixture(scope="module")
def sample():
    """About 1e5 particles."""
    return generate_particles(2000, np.random.default_rng(1))


def transverse(vector):
    return np.hypot(vector[:, 0], vector[:, 1])


def is_prompt(particles):
    return (transverse(particles.vertex) < 0.1) & ~particles.is_material


def select(particles, mask):
    return GeneratedParticles(*(field[mask] for field in particles))


def assert_fraction(found, expected):
    """A fraction of `found` agrees with `expected` within 4 standard deviations."""
    sigma = np.sqrt(expected * (1 - expected) / len(found))
    assert abs(np.mean(found) - expected) < 4 * sigma


def assert_mean(found, expected):
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(len(found))


def test_acceptance(sample):
    assert transverse(sample.momentum).min() > 0.1
    assert np.abs(pseudorapidity(sample.momentum)).max() < 4
    assert transverse(sample.vertex).max() < 1050
    assert np.abs(sample.vertex[:, 2]).max() < 2960


def test_prompt_pt_follows_the_hagedorn_spectrum(sample):
    pt = transverse(sample.momentum[is_prompt(sample)])
    assert len(pt) > 50_000

    def survival(x):  # the integral of pT (1 + pT / p0)^-n above x, for n = 6.03, p0 = 0.87 GeV
        return (1 + 5.03 * x / 0.87) * (1 + x / 0.87) ** -5.03

    for threshold in (0.15, 0.3, 0.5, 1.0, 2.0, 4.0):
        assert_fraction(pt > threshold, survival(threshold) / survival(0.1))


def test_prompt_directions_are_uniform(sample):
    momentum = sample.momentum[is_prompt(sample)]
    eta, phi = pseudorapidity(momentum), np.arctan2(momentum[:, 1], momentum[:, 0])
    for part in (0.25, 0.5, 0.75):
        assert_fraction(eta < -4 + 8 * part, part)
        assert_fraction(phi < -np.pi + 2 * np.pi * part, part)


def test_species_and_charges(sample):
    pdg = sample.pdg[is_prompt(sample)]
    for code, part in ((211, 0.856), (321, 0.098), (2212, 0.041), (11, 0.005)):
        assert_fraction(np.abs(pdg) == code, part)
    assert_fraction(pdg > 0, 0.5)
    codes = np.array([211, -211, 321, -321, 2212, -2212, 11, -11], np.int32)
    np.testing.assert_array_equal(charge_of(codes), [1, -1, 1, -1, 1, -1, -1, 1])


def test_collisions(sample):
    prompt = select(sample, is_prompt(sample))
    collisions, first, counts = np.unique(prompt.collision, return_index=True, return_counts=True)
    assert abs(prompt.collision.max() + 1 - 2000) < 4 * np.sqrt(2000)
    # Negative binomial of mean 42.5 and shape 0.68, thinned by the 91.3 % above 0.1 GeV.
    num_collisions, mean, shape = prompt.collision.max() + 1, 42.5 * 0.913, 0.68
    variance = mean + mean**2 / shape
    assert abs(counts.sum() / num_collisions - mean) < 4 * np.sqrt(variance / num_collisions)
    assert_fraction(
        np.isin(np.arange(num_collisions), collisions, invert=True),
        (shape / (shape + mean)) ** shape,
    )
    for axis, sigma in enumerate((0.015, 0.015, 55.3)):
        points = prompt.vertex[first, axis]
        assert abs(points.std() / sigma - 1) < 4 / np.sqrt(2 * len(points))
        assert_mean(points, 0)
    same = prompt.vertex[first][np.searchsorted(collisions, prompt.collision)]
    # A few hadrons decay so soon that their products count as prompt.
    assert (prompt.vertex == same).all(axis=1).mean() > 0.999


def test_secondaries_are_soft_and_come_from_material(sample):
    secondary = select(sample, sample.is_material)
    pt, temperature = transverse(secondary.momentum), 0.082
    beyond = (1 + 0.2 / temperature) * np.exp(-0.2 / temperature)
    assert_fraction(pt > 0.2, beyond / ((1 + 0.1 / temperature) * np.exp(-0.1 / temperature)))
    assert_fraction(secondary.pdg == 2212, 0.43)

    radius, z = transverse(secondary.vertex), np.abs(secondary.vertex[:, 2])
    from_cylinder = np.abs(radius[:, None] - kinematics.CYLINDERS[:, 0]).min(axis=1)
    from_disc = np.abs(z[:, None] - kinematics.DISCS[:, 0]).min(axis=1)
    # The straight line begins up to 0.1 mm beside the beam line.
    assert np.minimum(from_cylinder, from_disc).max() < 0.1
    assert (from_cylinder > 1).any() and (from_disc > 1).any()

    eta = pseudorapidity(secondary.momentum)
    flight = select(sample, is_prompt(sample))
    origin = np.zeros(sample.collision.max() + 1)
    origin[flight.collision] = flight.vertex[:, 2]
    parent = secondary.vertex.copy()
    parent[:, 2] -= origin[secondary.collision]
    slope, offset = np.polyfit(pseudorapidity(parent), eta, 1)
    error = 0.68 / np.sqrt(len(eta)) / pseudorapidity(parent).std()
    assert abs(slope - 0.12) < 5 * error
    residual = eta - slope * pseudorapidity(parent) - offset
    assert abs(residual.std() / 0.68 - 1) < 4 / np.sqrt(2 * len(eta))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("z0", "eta", "crossed"),
    [
        # Distance from the vertex and thickness over cosine, by hand.
        (
            0.0,
            0.0,
            {
                19: 0.0013,
                **dict.fromkeys((34, 74, 118, 174, 200), 0.0066),
                **dict.fromkeys((257, 358, 498, 658, 817, 1018), 0.0115),
            },
        ),
        (
            0.0,
            3.0,
            {
                19 * np.cosh(3): 0.0013 * np.cosh(3),
                34 * np.cosh(3): 0.0066 * np.cosh(3),
                200 * np.cosh(3): 0.0066 * np.cosh(3),
                **{
                    z / np.tanh(3): 0.0066 / np.tanh(3)
                    for z in (600, 700, 820, 960, 1100, 1300, 1500)
                },
                **{z / np.tanh(3): 0.0115 / np.tanh(3) for z in (2550, 2950)},
            },
        ),
        # From near the end of the pixel barrel: past its layers, and over the pixel discs.
        (
            480.0,
            0.5,
            {
                19 * np.cosh(0.5): 0.0013 * np.cosh(0.5),
                200 * np.cosh(0.5): 0.0066 * np.cosh(0.5),
                **{
                    r * np.cosh(0.5): 0.0115 * np.cosh(0.5) for r in (257, 358, 498, 658, 817, 1018)
                },
            },
        ),
    ],
)
def test_first_interaction_by_hand(z0, eta, crossed, sign):
    num = 200_000
    # Just off eta = 0, where no disc is crossed and the division is by zero.
    direction = np.array([1.0, 0.0, sign * (np.sinh(eta) + 1e-9)])
    vertex = np.array([0.0, 0.0, sign * z0])
    distance = first_interaction(
        np.tile(vertex, (num, 1)), np.tile(direction, (num, 1)), np.random.default_rng(0)
    )
    passed = 1.0
    for where, thickness in sorted(crossed.items()):
        here = np.abs(distance - where) < 1e-3
        assert_fraction(here, passed * -np.expm1(-thickness))
        passed *= np.exp(-thickness)
    assert_fraction(np.isinf(distance), passed)


def test_secondaries_are_made_where_the_parent_is_lost(sample):
    prompt = select(sample, is_prompt(sample))
    lost = np.isfinite(prompt.flight_limit)
    direction = prompt.momentum / np.linalg.norm(prompt.momentum, axis=1, keepdims=True)
    ends = (prompt.vertex + prompt.flight_limit[:, None] * direction)[lost]
    vertices = np.unique(sample.vertex[sample.is_material].round(3), axis=0)
    # Parents below 0.1 GeV are not listed, their secondaries are.
    assert np.isin(vertices, ends.round(3)).all(axis=1).mean() > 0.8
    assert np.isinf(prompt.flight_limit[np.abs(prompt.pdg) == 11]).all()
    assert lost.mean() > 0.1


def test_two_body_decay_conserves_energy_and_momentum():
    rng = np.random.default_rng(0)
    parent = rng.normal(0, 2, (1000, 3))
    positive, negative = two_body_decay(parent, 1.11568, [0.93827, 0.13957], rng)
    np.testing.assert_allclose(positive + negative, parent, atol=1e-9)
    energy = sum(
        np.sqrt((momentum**2).sum(axis=1) + mass**2)
        for momentum, mass in ((positive, 0.93827), (negative, 0.13957))
    )
    np.testing.assert_allclose(energy**2 - (parent**2).sum(axis=1), 1.11568**2, rtol=1e-9)


def test_two_body_decay_is_isotropic_at_rest():
    positive, _ = two_body_decay(
        np.zeros((20_000, 3)), 0.49761, [0.13957, 0.13957], np.random.default_rng(0)
    )
    absolute = np.linalg.norm(positive, axis=1)
    np.testing.assert_allclose(absolute, 0.206, atol=5e-4)  # PDG: K0S -> pi+ pi-
    for axis in range(3):
        assert_mean(positive[:, axis] / absolute, 0)
        assert_mean((positive[:, axis] / absolute) ** 2, 1 / 3)


@pytest.mark.parametrize("kind", NEUTRAL_HADRONS)
def test_decays_happen_after_the_decay_length(sample, kind):
    prompt = select(sample, is_prompt(sample))
    point = np.zeros((prompt.collision.max() + 1, 3))
    decays = draw_decays(kind, prompt, point, np.random.default_rng(0))
    expected = kind.per_prompt * len(prompt.pdg)
    num = len(decays.pdg) // 2
    assert abs(num - expected) < 4 * np.sqrt(expected)
    parent = decays.momentum[:num] + decays.momentum[num:]
    proper = np.linalg.norm(decays.vertex[:num], axis=1) * kind.mass
    proper /= np.linalg.norm(parent, axis=1)
    assert abs(proper.mean() / kind.decay_length - 1) < 4 / np.sqrt(num)
    np.testing.assert_array_equal(decays.vertex[:num], decays.vertex[num:])
    along = (decays.vertex[:num] * parent).sum(axis=1)
    length = np.linalg.norm(decays.vertex[:num], axis=1) * np.linalg.norm(parent, axis=1)
    np.testing.assert_allclose(along, length, rtol=1e-9)
    assert decays.pdg[0] == kind.products[0][0] and decays.pdg[num] == kind.products[1][0]


def test_one_collision_at_least():
    draws = [generate_particles(1e-6, np.random.default_rng(seed)) for seed in range(20)]
    assert sum(len(particles.pdg) for particles in draws) > 0
    assert all((particles.collision == 0).all() for particles in draws)


@pytest.mark.parametrize("pileup", [0, -1.0, np.nan, np.inf])
def test_bad_pileup(pileup):
    with pytest.raises(ValueError, match=r"pileup is .*; expected a positive number"):
        generate_particles(pileup, np.random.default_rng(0))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real event is not here")
def test_kinds_of_particles_are_as_frequent_as_in_the_real_event(sample):
    # The file holds a part of the event.
    with pytest.warns(UserWarning, match="the weights sum to"):
        particles = read_event(REAL, 1).particles
    from_material = particles.particle_id & 0xFFFF != 0
    radius = transverse(particles.vertex)
    kinds = [from_material, ~from_material & (radius > 0.1), ~from_material & (radius < 0.1)]
    simulated = [
        sample.is_material,
        ~sample.is_material & (transverse(sample.vertex) > 0.1),
        is_prompt(sample),
    ]
    for real, drawn in zip(kinds, simulated, strict=True):
        assert abs(real.sum() - drawn.mean() * len(real)) < 3 * np.sqrt(real.sum())
        pt, drawn_pt = transverse(particles.momentum[real]), transverse(sample.momentum[drawn])
        quartiles = np.quantile(pt, [0.25, 0.5, 0.75])
        found = [(drawn_pt < quartile).mean() for quartile in quartiles]
        np.testing.assert_allclose(found, [0.25, 0.5, 0.75], atol=2 / np.sqrt(real.sum()))
