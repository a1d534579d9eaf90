"""Host side: full events of the TrackML detector, simulated with ACTS Fatras.

The only module that imports acts, and only when it is used.

`kinematics` draws the particles, Fatras carries them through the Generic detector of ACTS (the
TrackML detector, with its volume, layer and module numbers) in the field of a solenoid, or in 2 T
everywhere, with multiple scattering and energy loss, and `digitization` makes measurements of their
crossings and adds noise. TrackML itself was made this way (Amrouche et al., arXiv:1904.06778).

An event is a function of (seed, event id, pile-up, field) alone: neither the order in which events
are made nor the number of processes changes a bit of it.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.events.digitization import CELL_SIZE, Crossings, SimulatedEvent, measure
from hypertrack_jax.events.event import validate_event
from hypertrack_jax.events.kinematics import GeneratedParticles, generate_particles
from hypertrack_jax.events.modules import Modules, drift_of
from hypertrack_jax.events.solenoid import solenoid_field
from hypertrack_jax.streams import stream

FIELD = 2.0  # Tesla, along the beam; of "uniform"
FIELDS = "solenoid", "uniform"
MAP_RADIUS, MAP_LENGTH, MAP_STEP = 1300, 3300, 20  # mm; the map of the solenoid's field
MIN_MOMENTUM = 0.05  # GeV; particles are followed down to here

# Particles below leave no hits in TrackML: in the real event (see `kinematics`) 22 of the 23 prompt
# particles up to here have none, and 13 of the 365 above.
MIN_SIMULATED_PT = 0.15  # GeV


class Detector(NamedTuple):
    """The TrackML detector as ACTS holds it, and its modules as arrays."""

    acts_detector: Any
    """The owner of the tracking geometry; it must outlive every use of it."""
    modules: Modules
    """All sensitive modules."""


def simulate_event(
    event_id: int, pileup: int | float, seed: int, field: str = "solenoid"
) -> SimulatedEvent:
    """Simulates one event.

    The first call in a process builds the detector, which takes half a second. A beam crossing in
    which no particle carries weight (frequent only below a pile-up of 1) is drawn anew.

    Args:
      event_id: number of the event.
      pileup: mean number of proton collisions; 200 in TrackML.
      seed: with `event_id`, decides all randomness.
      field: "solenoid", that of the real TrackML event, see `solenoid`; or "uniform", 2 T
        everywhere.

    Returns:
      The event with full truth, its hits ordered by volume, layer and module, and the true
      crossings. Particles that leave no hits are listed with `num_hits` 0, as in TrackML's files.

    Raises:
      MissingPackageError: pyacts is not installed.
      UserError: `pileup` is not positive, `seed` or `event_id` is negative or beyond 63 bits, or
        there is no such field.
    """
    if field not in FIELDS:
        raise UserError(f"field={field!r}: choose one of {', '.join(FIELDS)}.")
    for name, value in (("seed", seed), ("event_id", event_id)):
        if not 0 <= value < 2**63:
            raise UserError(f"{name}={value}: expected a whole number from 0 to 2^63 - 1.")
    # Not `stream`: the shipped weights were trained on these very events.
    rng = np.random.default_rng([seed, event_id])
    cell_rng = stream("cells", seed, event_id)
    while True:
        particles = generate_particles(pileup, rng)
        crossings = _simulate_crossings(particles, field, int(rng.integers(2**31)))
        simulated = measure(
            event_id, particles, crossings, generic_detector().modules, rng, cell_rng
        )
        if simulated.event.hit_weight.sum() > 0:
            validate_event(simulated.event, f"simulated event {event_id}")
            return simulated


@functools.cache
def generic_detector() -> Detector:
    """The Generic detector of ACTS, built once per process.

    Raises:
      MissingPackageError: pyacts is not installed.
    """
    acts = _import_acts()
    config = acts.examples.GenericDetector.Config(logLevel=acts.logging.ERROR)
    detector = acts.examples.GenericDetector(config)
    surfaces = []
    detector.trackingGeometry().visitSurfaces(surfaces.append)
    surfaces.sort(key=lambda surface: surface.geometryId.value)
    return Detector(detector, _modules(acts, surfaces))


@functools.cache
def acts_field(field: str) -> Any:
    """The field, one of `FIELDS`, as ACTS takes it.

    ACTS's own solenoid is not used: on the beam line the radial component of its field is not 0.

    Raises:
      MissingPackageError: pyacts is not installed.
    """
    acts = _import_acts()
    if field == "uniform":
        return acts.ConstantBField(acts.Vector3(0, 0, FIELD * acts.UnitConstants.T))
    r = np.arange(0, MAP_RADIUS + MAP_STEP, MAP_STEP)
    z = np.arange(-MAP_LENGTH, MAP_LENGTH + MAP_STEP, MAP_STEP)
    places = np.stack(np.meshgrid(r, z), axis=-1).reshape(-1, 2).astype(np.float64)
    rows = np.column_stack([places, *solenoid_field(*places.T)])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "field.txt"
        np.savetxt(path, rows)
        units = acts.UnitConstants
        return acts.MagneticFieldMapRz(str(path), lengthUnit=units.mm, bFieldUnit=units.T)


def _simulate_crossings(particles: GeneratedParticles, field: str, seed: int) -> Crossings:
    """Crossings up to where a particle is lost; Fatras in pyacts has no nuclear interactions."""
    detector = generic_detector()
    geometry_id, particle, position, momentum = _run_fatras(detector, particles, field, seed)
    distance = np.linalg.norm(position - particles.vertex[particle], axis=1)
    kept = distance < particles.flight_limit[particle]
    return Crossings(
        particle=particle[kept],
        module=np.searchsorted(detector.modules.geometry_id, geometry_id[kept]),
        position=position[kept],
        momentum=momentum[kept],
    )


def _run_fatras(detector, particles, field, seed):
    """Runs Fatras on one event in memory; csv files between the steps would round to 6 digits."""
    acts = _import_acts()
    # Fatras logs errors for particles born in a gap between volumes, one in 1e4; they get no hits.
    examples, quiet = acts.examples, acts.logging.FATAL
    particle_gun, hit_collector = _store_doors()
    gun, collector = particle_gun(particles), hit_collector()
    sequencer = examples.Sequencer(events=1, numThreads=1, logLevel=quiet, trackFpes=False)
    sequencer.addReader(gun)
    sequencer.addAlgorithm(
        examples.FatrasSimulation(
            level=quiet,
            inputParticles="particles",
            outputParticles="particles_simulated",
            outputSimHits="hits",
            randomNumbers=examples.RandomNumbers(seed=seed),
            trackingGeometry=detector.acts_detector.trackingGeometry(),
            magneticField=acts_field(field),
            # Without this Fatras leaves particles below 0.5 GeV out.
            pMin=MIN_MOMENTUM * acts.UnitConstants.GeV,
            generateHitsOnSensitive=True,
            emScattering=True,
            emEnergyLossIonisation=True,
            emEnergyLossRadiation=True,
            # Every hit then belongs to a particle of `particles`.
            emPhotonConversion=False,
        )
    )
    sequencer.addAlgorithm(collector)
    sequencer.run()
    crossings = collector.crossings
    # Each of the two and its data handle keep each other alive, by references in C++ that Python's
    # garbage collector does not see: their data would never be freed, 8 MB for each full event.
    gun.__dict__.clear()
    collector.__dict__.clear()
    return crossings


@functools.cache
def _store_doors():
    """Two classes: one hands particles to acts' event store, one takes the hits from it.

    Made once, because acts never forgets a class; and only when acts is used.
    """
    acts = _import_acts()
    examples, quiet = acts.examples, acts.logging.FATAL

    class ParticleGun(examples.IReader):
        """Hands the particles to the event store."""

        def __init__(self, particles):
            super().__init__("ParticleGun", quiet)
            self.particles = particles
            self.output = examples.WriteDataHandle(self, examples.SimParticleContainer, "output")
            self.output.initialize("particles")

        def availableEvents(self):
            return 0, 1

        def read(self, context):
            self.output(context, _acts_particles(acts, self.particles))
            return examples.ProcessCode.SUCCESS

    class HitCollector(examples.IAlgorithm):
        """Copies the hits from the event store, which frees them at the end of the event."""

        def __init__(self):
            super().__init__("HitCollector", quiet)
            self.crossings: Any = None
            self.input = examples.ReadDataHandle(self, examples.SimHitContainer, "input")
            self.input.initialize("hits")

        def execute(self, context):
            self.crossings = _hit_arrays(self.input(context.eventStore))
            return examples.ProcessCode.SUCCESS

    return ParticleGun, HitCollector


def _acts_particles(acts, particles):
    """The particles that TrackML simulates; the barcode is the index in the whole list, plus 1."""
    container = acts.examples.SimParticleContainer()
    absolute = np.linalg.norm(particles.momentum, axis=1)
    direction = particles.momentum / absolute[:, None]
    rows = zip(
        particles.pdg.tolist(),
        particles.vertex.tolist(),
        direction.tolist(),
        (absolute * acts.UnitConstants.GeV).tolist(),
        strict=True,
    )
    is_simulated = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1]) > MIN_SIMULATED_PT
    for index, (pdg, vertex, unit, momentum) in enumerate(rows):
        if not is_simulated[index]:
            continue
        barcode = acts.examples.SimBarcode()
        barcode.vertexPrimary = 1
        barcode.particle = index + 1
        particle = acts.examples.SimParticle(barcode, acts.PdgParticle(pdg))
        particle.fourPosition = acts.Vector4(*vertex, 0)
        particle.direction = acts.Vector3(*unit)
        particle.absoluteMomentum = momentum
        container.insert(particle)
    return container


def _hit_arrays(hits):
    """Geometry id, particle, position and momentum of the hits; acts has one object per hit."""
    rows, vector = len(hits), np.dtype((np.float64, 3))
    positions = (((p := hit.fourPosition)[0], p[1], p[2]) for hit in hits)
    momenta = (((p := hit.momentum4Before)[0], p[1], p[2]) for hit in hits)
    return (
        np.fromiter((hit.geometryId.value >> 8 for hit in hits), np.int64, rows),
        np.fromiter((hit.particleId.particle - 1 for hit in hits), np.int64, rows),
        np.fromiter(positions, vector, rows),
        np.fromiter(momenta, vector, rows),
    )


def _modules(acts, surfaces) -> Modules:
    """Turns the sensitive surfaces into arrays."""
    context = acts.GeometryContext.dangerouslyDefaultConstruct()
    normal = acts.Vector3(0, 0, 1)  # not used by planes
    # Vectors are indexed, here and for the hits: iterating over an acts vector ends in a C++
    # exception, which takes 50 us or more, the longer the more programs jax has compiled.
    center, along_u, along_v = (
        np.array(
            [
                ((p := surface.localToGlobal(context, local, normal))[0], p[1], p[2])
                for surface in surfaces
            ]
        )
        for local in (acts.Vector2(0, 0), acts.Vector2(1, 0), acts.Vector2(0, 1))
    )
    ids = [surface.geometryId for surface in surfaces]
    number = np.array([(i.volume, i.layer, i.sensitive) for i in ids], np.int32)
    cell_size = np.array([CELL_SIZE[volume] for volume in number[:, 0].tolist()])
    return Modules(
        geometry_id=np.array([i.value >> 8 for i in ids], np.int64),
        number=number,
        center=center,
        axes=np.stack([along_u - center, along_v - center], axis=1),
        half_size=np.array([_half_size(acts, surface.bounds) for surface in surfaces]),
        pitch=cell_size[:, :2],
        thickness=cell_size[:, 2],
        drift=drift_of(number),
    )


def _half_size(acts, bounds):
    values = bounds.values()
    if isinstance(bounds, acts.RectangleBounds):
        return values[2], values[2], values[3]
    return values[0], values[1], values[2]  # trapezoid


def _import_acts():
    try:
        import acts
        import acts.examples
    except ImportError as error:
        raise MissingPackageError(
            "pyacts, which simulates events, is not installed; "
            "run: pip install 'hypertrack-jax[sim]'."
        ) from error
    return acts
