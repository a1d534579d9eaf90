"""A small event of exact helices, for tests that need tracks but no simulation.

The detector has the radii and disc positions of the TrackML detector and a solenoid field of 2 T;
particles start on the beam line and neither scatter nor lose energy.
"""

import numpy as np

from hypertrack_jax.events.event import NOISE, Event, Particles

FIELD = 2.0  # Tesla
GEV_PER_TESLA_MM = 0.299792458e-3
VERTEX_SIGMA_Z = 55.0  # mm
SMEARING = 0.05  # mm, along the surface
PHI_MODULES = 32  # modules of a layer, side by side in azimuth

# (volume, layer, radius, half length) and (volume, layer, z, inner radius, outer radius), in mm.
BARRELS = (
    *((8, 2 * i + 2, r, 500.0) for i, r in enumerate((32.0, 72.0, 116.0, 172.0))),
    *((13, 2 * i + 2, r, 1080.0) for i, r in enumerate((260.0, 360.0, 500.0, 660.0))),
    *((17, 2 * i + 2, r, 1080.0) for i, r in enumerate((820.0, 1020.0))),
)
PIXEL_DISCS = (600.0, 700.0, 820.0, 960.0, 1120.0, 1300.0, 1500.0)
STRIP_DISCS = (1220.0, 1500.0, 1800.0, 2150.0, 2550.0, 2950.0)
DISCS = (
    *((9, 2 * i + 2, z, 28.0, 176.0) for i, z in enumerate(PIXEL_DISCS)),
    *((7, 14 - 2 * i, -z, 28.0, 176.0) for i, z in enumerate(PIXEL_DISCS)),
    *((14, 2 * i + 2, z, 240.0, 700.0) for i, z in enumerate(STRIP_DISCS)),
    *((12, 12 - 2 * i, -z, 240.0, 700.0) for i, z in enumerate(STRIP_DISCS)),
    *((18, 2 * i + 2, z, 755.0, 1020.0) for i, z in enumerate(STRIP_DISCS)),
    *((16, 12 - 2 * i, -z, 755.0, 1020.0) for i, z in enumerate(STRIP_DISCS)),
)


def helix_event(
    seed: int, num_particles: int = 20, noise_ratio: float = 0.1, event_id: int = 1
) -> Event:
    """A reproducible event of helices and noise.

    Args:
      seed: together with `event_id` decides the event.
      num_particles: particles made; each leaves at least 4 hits.
      noise_ratio: part of all hits that is noise, in [0, 1).
      event_id: number of the event.

    Returns:
      An event with full truth; every particle hit has a weight, equal shares of an equal share per
      particle.
    """
    rng = np.random.default_rng([seed, event_id])
    particles, tracks = [], []
    while len(tracks) < num_particles:
        z0, momentum, charge = _draw_particle(rng)
        track = _helix_hits(rng, z0, momentum, charge)
        if len(track) >= 4:
            particles.append((z0, momentum, charge))
            tracks.append(track)
    hits = [(*hit, index) for index, track in enumerate(tracks) for hit in track]
    num_noise = round(len(hits) * noise_ratio / (1 - noise_ratio))
    hits += [(*_noise_hit(rng), NOISE) for _ in range(num_noise)]
    # TrackML lists the hits by volume, layer and module.
    hits.sort(key=lambda hit: hit[1])

    hit_particle = np.array([particle for _, _, particle in hits], np.int32)
    num_hits = np.array([len(track) for track in tracks], np.int32)
    share = 1.0 / (num_particles * num_hits) if num_particles else np.zeros(0)
    weight = np.zeros(len(hits))
    weight[hit_particle != NOISE] = share[hit_particle[hit_particle != NOISE]]
    return Event(
        event_id=event_id,
        position=np.array([position for position, _, _ in hits], np.float32).reshape(-1, 3),
        hit_id=np.arange(1, len(hits) + 1, dtype=np.int64),
        hit_particle=hit_particle,
        hit_weight=weight,
        module=np.array([module for _, module, _ in hits], np.int64).reshape(-1, 3),
        particles=Particles(
            particle_id=np.arange(1, num_particles + 1, dtype=np.int64) << 40,
            vertex=np.array([(0, 0, z0) for z0, _, _ in particles], np.float32).reshape(-1, 3),
            momentum=np.array([p for _, p, _ in particles], np.float32).reshape(-1, 3),
            charge=np.array([charge for _, _, charge in particles], np.int32),
            num_hits=num_hits,
        ),
        has_truth=True,
    )


def _draw_particle(rng):
    z0 = rng.normal(0, VERTEX_SIGMA_Z)
    pt, phi, eta = (
        np.exp(rng.uniform(np.log(0.4), np.log(4))),
        *rng.uniform((-np.pi, -3), (np.pi, 3)),
    )
    momentum = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    return z0, momentum, int(rng.choice([-1, 1]))


def _helix_hits(rng, z0, momentum, charge):
    """Hits (position, module) on the way outwards, up to half a turn, in the order of flight."""
    pt = np.hypot(momentum[0], momentum[1])
    radius = pt / (GEV_PER_TESLA_MM * FIELD)
    rise = radius * momentum[2] / pt  # dz per radian of turn
    crossings = []  # (turn, volume, layer, is a disc)
    for volume, layer, r, half_length in BARRELS:
        if r < 2 * radius:
            turn = 2 * np.arcsin(r / (2 * radius))
            if abs(z0 + rise * turn) < half_length:
                crossings.append((turn, volume, layer, False))
    for volume, layer, z, inner, outer in DISCS:
        turn = (z - z0) / rise
        if 0 < turn < np.pi and inner < 2 * radius * np.sin(turn / 2) < outer:
            crossings.append((turn, volume, layer, True))

    hits = []
    for turn, volume, layer, is_disc in sorted(crossings):
        # A positive particle in a field along +z turns clockwise.
        phi = np.arctan2(momentum[1], momentum[0]) - charge * turn / 2
        r, z = 2 * radius * np.sin(turn / 2), z0 + rise * turn
        phi += rng.normal(0, SMEARING) / r
        if is_disc:
            r += rng.normal(0, SMEARING)
        else:
            z += rng.normal(0, SMEARING)
        hits.append(_hit(r, phi, z, volume, layer))
    return hits


def _noise_hit(rng):
    surface = rng.integers(len(BARRELS) + len(DISCS))
    phi = rng.uniform(-np.pi, np.pi)
    if surface < len(BARRELS):
        volume, layer, r, half_length = BARRELS[surface]
        return _hit(r, phi, rng.uniform(-half_length, half_length), volume, layer)
    volume, layer, z, inner, outer = DISCS[surface - len(BARRELS)]
    return _hit(rng.uniform(inner, outer), phi, z, volume, layer)


def _hit(r, phi, z, volume, layer):
    module = 1 + int(phi % (2 * np.pi) / (2 * np.pi) * PHI_MODULES)
    return (r * np.cos(phi), r * np.sin(phi), z), (volume, layer, module)
