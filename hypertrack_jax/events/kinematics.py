"""Host side: a parametric model of the charged particles of a beam crossing.

TrackML's particles came from Pythia 8 (a top-quark pair over 200 minimum-bias collisions) and from
the hadrons' interactions in the detector (Amrouche et al., arXiv:1904.06778). Here they are drawn
from a few distributions whose constants were fitted to one real TrackML event: event 1 of the
training set with 5 % of its particles kept, that is 548 charged particles with pT > 0.1 GeV and
|eta| < 4. Its particle ids tell three kinds apart:

- 388 *prompt* particles, made within 0.1 mm of the beam line;
- 42 *decay products* of neutral strange hadrons, which fly before they decay;
- 118 *material secondaries*, made where a hadron struck the detector and was lost: soft, nearly
  isotropic, half of them protons.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from hypertrack_jax.errors import UserError

MIN_PT = 0.1  # GeV; particles below are not recorded, in the real file as here
MAX_ABS_ETA = 4.0
TRACKER_RADIUS, TRACKER_HALF_LENGTH = 1050.0, 2960.0  # mm; nothing made outside leaves a hit

# Collisions. Widths of the 100 reconstructed collision points of the real event.
VERTEX_SIGMA = (0.015, 0.015, 55.3)  # mm

# Prompt particles of a collision, with any pT and |eta| < 4: negative binomial. The event holds
# 388 / 5 % / 200 = 38.8 per collision above 0.1 GeV, 91.3 % of the fitted pT spectrum; the shape k
# is mean^2 / (variance - mean) of the counts per collision, which thinning does not change.
MEAN_PROMPT = 42.5
SHAPE_PROMPT = 0.68

# dN/dpT ~ pT (1 + pT / p0)^-n (Hagedorn 1983), maximum likelihood, Kolmogorov-Smirnov p = 0.26.
# Eta is flat: p = 0.50.
PT_SCALE = 0.870  # GeV
PT_POWER = 6.03

# By PDG code: fractions counted among the prompt particles; both charges are equally likely.
PROMPT_SPECIES = {211: 0.856, 321: 0.098, 2212: 0.041, 11: 0.005}

# Neutral strange hadrons: mass (GeV), c tau (mm), charged two-body decay (PDG) with the masses of
# its products, and number per prompt particle, fitted to the 42 decay products, 9 of them protons.
PION_MASS, PROTON_MASS = 0.13957, 0.93827


class NeutralHadron(NamedTuple):
    """A hadron that leaves no hits and decays into two charged particles."""

    mass: float
    """Rest mass, in GeV."""
    decay_length: float
    """Proper decay length c tau, in mm."""
    products: tuple[tuple[int, float], tuple[int, float]]
    """PDG code and mass, in GeV, of the positive and the negative decay product."""
    per_prompt: float
    """Mean number per prompt particle, any pT."""


NEUTRAL_HADRONS = (
    NeutralHadron(0.49761, 26.84, ((211, PION_MASS), (-211, PION_MASS)), 0.035),
    NeutralHadron(1.11568, 78.9, ((2212, PROTON_MASS), (-211, PION_MASS)), 0.011),
    NeutralHadron(1.11568, 78.9, ((211, PION_MASS), (-2212, PROTON_MASS)), 0.011),
)
NEUTRAL_PT_SCALE = 2.0  # GeV; heavier particles have a harder spectrum

# Material that secondaries come from, with the probability of a hadron that crosses it at right
# angles to interact: surfaces where the real event's 118 were made, in three thicknesses fitted to
# the counts at r < 25 mm (7), on pixels and their support (63), and further out (48).
BEAM_PIPE, PIXEL, STRIP = 0.0013, 0.0066, 0.0115
CYLINDERS = np.array(  # radius, half length, mm, probability
    [
        (19, 3000, BEAM_PIPE),
        *((r, 491, PIXEL) for r in (34, 74, 118, 174)),
        (200, 3000, PIXEL),
        *((r, 1084, STRIP) for r in (257, 358, 498, 658, 817, 1018)),
    ]
)
DISCS = np.array(  # |z|, inner radius, outer radius, mm, probability
    [
        *((z, 30, 176, PIXEL) for z in (600, 700, 820, 960, 1100, 1300, 1500)),
        *((z, 240, 1000, STRIP) for z in (1183, 1220, 1500, 1800, 2150, 2550, 2950)),
    ]
)
MEAN_SECONDARIES = 2.8  # charged, any pT, per interaction
SECONDARY_TEMPERATURE = 0.082  # GeV: dN/dpT ~ pT exp(-pT / T), p = 0.69
SECONDARY_ETA_SLOPE = 0.12  # eta = slope * eta of the parent + normal(0, sigma)
SECONDARY_ETA_SIGMA = 0.68
SECONDARY_SPECIES = {2212: 0.43, 211: 0.285, -211: 0.285}


class GeneratedParticles(NamedTuple):
    """Charged particles before the detector is simulated, one entry per particle."""

    vertex: Float64[np.ndarray, "particle 3"]
    """Production point, in mm."""
    momentum: Float64[np.ndarray, "particle 3"]
    """Momentum at the production point, in GeV."""
    pdg: Int32[np.ndarray, " particle"]
    """Species in the numbering of the Particle Data Group; see `charge_of`."""
    collision: Int64[np.ndarray, " particle"]
    """Index of the collision that the particle comes from, from 0."""
    is_material: Bool[np.ndarray, " particle"]
    """True for a secondary from the detector's material."""
    flight_limit: Float64[np.ndarray, " particle"]
    """Flight distance, in mm, at which the particle is lost in an interaction; inf if it is not."""


def generate_particles(pileup: int | float, rng: np.random.Generator) -> GeneratedParticles:
    """Draws the charged particles, with pT > 0.1 GeV and |eta| < 4, of one beam crossing.

    Args:
      pileup: mean number of collisions; at least one happens.
      rng: source of all randomness.

    Returns:
      The particles: prompt ones, decay products, material secondaries.

    Raises:
      UserError: `pileup` is not a positive number.
    """
    if not 0 < pileup < np.inf:
        raise UserError(f"pileup is {pileup}; expected a positive number, as 200 for a full event.")
    num_collisions = max(1, rng.poisson(pileup))
    collision_point = rng.normal(0, VERTEX_SIGMA, (num_collisions, 3))
    prompt = _draw_prompt(collision_point, rng)
    decayed = [draw_decays(kind, prompt, collision_point, rng) for kind in NEUTRAL_HADRONS]
    kinds = [prompt, *decayed, _draw_secondaries(prompt, rng)]
    particles = GeneratedParticles(*map(np.concatenate, zip(*kinds, strict=True)))
    accepted = _in_acceptance(particles.vertex, particles.momentum)
    return GeneratedParticles(*(field[accepted] for field in particles))


def charge_of(pdg: Int32[np.ndarray, " particle"]) -> Int32[np.ndarray, " particle"]:
    """Charge in units of the positron's; it is negative for PDG code 11, the electron."""
    return np.sign(pdg) * np.where(np.abs(pdg) == 11, -1, 1).astype(np.int32)


def pseudorapidity(vector: Float64[np.ndarray, "row 3"]) -> Float64[np.ndarray, " row"]:
    """Eta of directions; infinite along the beam."""
    with np.errstate(divide="ignore"):
        return np.arcsinh(vector[:, 2] / np.hypot(vector[:, 0], vector[:, 1]))


def first_interaction(
    vertex: Float64[np.ndarray, "particle 3"],
    momentum: Float64[np.ndarray, "particle 3"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, " particle"]:
    """Distance, in mm, from the vertex to the first interaction in material, or inf.

    Particles fly straight from the beam line. The thickness that they cross grows as 1 / cos of the
    angle of incidence.
    """
    direction = momentum / np.linalg.norm(momentum, axis=1, keepdims=True)
    sin_theta = np.hypot(direction[:, 0], direction[:, 1])[:, None]
    cos_theta = direction[:, 2:]
    z0 = vertex[:, 2:]

    radius, half_length, in_cylinder = CYLINDERS.T
    to_cylinder = radius / sin_theta
    on_cylinder = np.abs(z0 + to_cylinder * cos_theta) < half_length

    disc_z, inner, outer, in_disc = DISCS.T
    to_disc = (np.sign(cos_theta) * disc_z - z0) / cos_theta
    disc_radius = to_disc * sin_theta
    on_disc = (to_disc > 0) & (inner < disc_radius) & (disc_radius < outer)

    distance = np.concatenate([to_cylinder, to_disc], axis=1)
    crossed = np.concatenate([on_cylinder, on_disc], axis=1)
    thickness = np.concatenate([in_cylinder / sin_theta, in_disc / np.abs(cos_theta)], axis=1)
    # The probability to pass is exp(-thickness): that to interact stays below 1 at grazing angles.
    interacts = crossed & (rng.random(distance.shape) < -np.expm1(-thickness))
    return np.where(interacts, distance, np.inf).min(axis=1)


def draw_decays(
    kind: NeutralHadron,
    prompt: GeneratedParticles,
    collision_point: Float64[np.ndarray, "collision 3"],
    rng: np.random.Generator,
) -> GeneratedParticles:
    """The products of all decays of one kind of neutral hadron: positive ones, then negative ones.

    The hadrons come from the collisions in proportion to the number of `prompt` particles.
    """
    num = rng.poisson(kind.per_prompt * len(prompt.pdg))
    collision = rng.choice(prompt.collision, num) if num else np.zeros(0, np.int64)
    eta = rng.uniform(-MAX_ABS_ETA, MAX_ABS_ETA, num)
    parent = _momentum(_draw_pt(NEUTRAL_PT_SCALE, num, rng), eta, rng)
    flight = parent * (kind.decay_length / kind.mass * rng.exponential(size=(num, 1)))
    positive, negative = two_body_decay(parent, kind.mass, [mass for _, mass in kind.products], rng)
    codes = [code for code, _ in kind.products]
    return GeneratedParticles(
        vertex=np.tile(collision_point[collision] + flight, (2, 1)),
        momentum=np.concatenate([positive, negative]),
        pdg=np.repeat(np.array(codes, np.int32), num),
        collision=np.tile(collision, 2),
        is_material=np.zeros(2 * num, bool),
        flight_limit=np.full(2 * num, np.inf),
    )


def two_body_decay(
    parent: Float64[np.ndarray, "decay 3"],
    mass: float,
    product_masses: list[float],
    rng: np.random.Generator,
) -> tuple[Float64[np.ndarray, "decay 3"], Float64[np.ndarray, "decay 3"]]:
    """Momenta of both products of isotropic decays, all in GeV (PDG review, Kinematics)."""
    first, second = product_masses
    breakup = np.sqrt((mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2))
    breakup /= 2 * mass
    direction = rng.normal(size=parent.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    at_rest = breakup * direction
    return (
        _boost(at_rest, np.hypot(breakup, first), parent, mass),
        _boost(-at_rest, np.hypot(breakup, second), parent, mass),
    )


def _draw_prompt(collision_point, rng) -> GeneratedParticles:
    success = SHAPE_PROMPT / (SHAPE_PROMPT + MEAN_PROMPT)
    multiplicity = rng.negative_binomial(SHAPE_PROMPT, success, len(collision_point))
    collision = np.repeat(np.arange(len(collision_point)), multiplicity)
    num = len(collision)
    species = rng.choice(list(PROMPT_SPECIES), num, p=list(PROMPT_SPECIES.values()))
    vertex = collision_point[collision]
    momentum = _momentum(
        _draw_pt(PT_SCALE, num, rng), rng.uniform(-MAX_ABS_ETA, MAX_ABS_ETA, num), rng
    )
    flight_limit = np.where(species == 11, np.inf, first_interaction(vertex, momentum, rng))
    return GeneratedParticles(
        vertex=vertex,
        momentum=momentum,
        pdg=(species * rng.choice([-1, 1], num)).astype(np.int32),
        collision=collision,
        is_material=np.zeros(num, bool),
        flight_limit=flight_limit,
    )


def _boost(momentum, energy, parent, mass):
    """Momentum in the laboratory of a decay product given in the rest frame of its parent."""
    parent_energy = np.sqrt((parent**2).sum(axis=1, keepdims=True) + mass**2)
    along = (momentum * parent).sum(axis=1, keepdims=True)
    return momentum + parent / mass * (energy + along / (parent_energy + mass))


def _draw_secondaries(prompt, rng) -> GeneratedParticles:
    lost = np.flatnonzero(np.isfinite(prompt.flight_limit))
    parent = np.repeat(lost, rng.poisson(MEAN_SECONDARIES, len(lost)))
    num = len(parent)
    parent_momentum = prompt.momentum[parent]
    direction = parent_momentum / np.linalg.norm(parent_momentum, axis=1, keepdims=True)
    eta = rng.normal(SECONDARY_ETA_SLOPE * pseudorapidity(parent_momentum), SECONDARY_ETA_SIGMA)
    pt = rng.gamma(2, SECONDARY_TEMPERATURE, num)
    species = rng.choice(list(SECONDARY_SPECIES), num, p=list(SECONDARY_SPECIES.values()))
    return GeneratedParticles(
        vertex=prompt.vertex[parent] + prompt.flight_limit[parent, None] * direction,
        momentum=_momentum(pt, eta, rng),
        pdg=species.astype(np.int32),
        collision=prompt.collision[parent],
        is_material=np.ones(num, bool),
        flight_limit=np.full(num, np.inf),
    )


def _draw_pt(scale, num, rng):
    """pT, in GeV, from pT (1 + pT / scale)^-n, which is a beta-prime distribution."""
    return scale * rng.gamma(2, size=num) / rng.gamma(PT_POWER - 2, size=num)


def _momentum(pt, eta, rng):
    phi = rng.uniform(-np.pi, np.pi, len(pt))
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)


def _in_acceptance(vertex, momentum):
    inside = np.hypot(vertex[:, 0], vertex[:, 1]) < TRACKER_RADIUS
    inside &= np.abs(vertex[:, 2]) < TRACKER_HALF_LENGTH
    pt = np.hypot(momentum[:, 0], momentum[:, 1])
    return inside & (pt > MIN_PT) & (np.abs(pseudorapidity(momentum)) < MAX_ABS_ETA)
