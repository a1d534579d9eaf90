"""Host side: the track finding of ACTS on our own events, as a peer of the reconstruction.

Triplets of pixel hits seed a combinatorial Kalman filter, and a greedy algorithm resolves hits that
tracks share. Reconstruction and training never load acts. Events go through memory, because csv
files would round positions to 6 digits.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.digitization import RESOLUTION
from hypertrack_jax.events.event import Event, choose_hits
from hypertrack_jax.events.modules import Modules
from hypertrack_jax.events.simulation import FIELD, Detector, acts_field, generic_detector

PIXEL_VOLUMES = (7, 8, 9)
MIN_MEASUREMENTS = 5
MAX_OFF_MODULE = 0.1
"""Largest distance of a hit from the plane of its module, in mm."""


class ActsTracks(NamedTuple):
    """What ACTS finds in an event."""

    hit_label: Int32[np.ndarray, " hit"]
    """Track of each hit, or -1. A shared hit belongs to the track with more measurements."""
    seconds: float
    """Wall time of the algorithms alone, from measurements in memory to tracks."""
    cpu_seconds: float
    """Processor time of the same; they run in one thread."""


class Measurements(NamedTuple):
    """Hits as ACTS takes them."""

    geometry_id: Int64[np.ndarray, " hit"]
    """Identifier of the module in ACTS."""
    local: Float64[np.ndarray, "hit 2"]
    """Place along the module's axes, in mm."""
    sigma: Float64[np.ndarray, "hit 2"]
    """Standard deviation of it, in mm."""


def find_tracks(
    event: Event, seed_pt: float = 0.15, is_displaced: bool = False, field: str = "solenoid"
) -> ActsTracks:
    """Finds the tracks of one event, with the resolution that it was simulated with.

    Args:
      event: an event of the TrackML detector.
      seed_pt: smallest transverse momentum that seeds look for, in GeV.
      is_displaced: whether the hits that are left get a second pass, whose seeds need not point
        to the beam line.
      field: that of the event, as in `simulate_event`.

    Returns:
      The tracks of at least 5 measurements.

    Raises:
      ImportError: pyacts is not installed.
      UserError: a hit is not on the module that the event names.
    """
    first = _one_pass(event, seed_pt, field, _SEEDING)
    if not is_displaced:
        return first
    is_left = first.hit_label < 0
    second = _one_pass(choose_hits(event, is_left), seed_pt, field, _SEEDING | _DISPLACED)
    label = first.hit_label.copy()
    further = second.hit_label + label.max(initial=-1) + 1
    label[is_left] = np.where(second.hit_label < 0, -1, further)
    seconds = first.seconds + second.seconds, first.cpu_seconds + second.cpu_seconds
    return ActsTracks(label, *seconds)


def _one_pass(event: Event, seed_pt: float, field: str, seeding: dict[str, Any]) -> ActsTracks:
    detector = generic_detector()
    # After `generic_detector`, which tells of a missing pyacts.
    import acts.examples

    measured = measurements(event, detector.modules)
    clocks, tracks = [], []

    def clock():
        clocks.append((time.perf_counter(), time.process_time()))

    sequencer = acts.examples.Sequencer(
        events=1, numThreads=1, logLevel=acts.logging.FATAL, trackFpes=False
    )
    container = _container(acts, measured)
    sequencer.addReader(_reader(acts, container, clock))
    for algorithm in _chain(acts, detector, seed_pt, acts_field(field), seeding):
        sequencer.addAlgorithm(algorithm)
    sequencer.addAlgorithm(_collector(acts, tracks, clock))
    sequencer.run()
    (wall, cpu), (wall_end, cpu_end) = clocks
    return ActsTracks(_labels(tracks, len(event.position)), wall_end - wall, cpu_end - cpu)


def measurements(event: Event, modules: Modules) -> Measurements:
    """The hits of an event in the frames of their modules.

    Raises:
      UserError: a hit is not on the module that the event names.
    """
    volume, layer, number = event.module.astype(np.int64).T
    # As in `Modules.geometry_id`: without the lowest 8 bits.
    name = (volume << 48) | (layer << 28) | number
    index = np.minimum(np.searchsorted(modules.geometry_id, name), len(modules.geometry_id) - 1)
    offset = event.position - modules.center[index]
    local = np.einsum("hx,hax->ha", offset, modules.axes[index])
    off_plane = np.linalg.norm(offset - np.einsum("ha,hax->hx", local, modules.axes[index]), axis=1)
    is_wrong = (modules.geometry_id[index] != name) | (off_plane > MAX_OFF_MODULE)
    if is_wrong.any():
        bad = int(np.flatnonzero(is_wrong)[0])
        raise UserError(
            f"event {event.event_id}: hit {event.hit_id[bad]} at {event.position[bad].tolist()} is "
            f"not on module {event.module[bad].tolist()} of the TrackML detector; compare with "
            "ACTS on events of simulate.py or of TrackML alone."
        )
    table = np.zeros((max(RESOLUTION) + 1, 2))
    table[list(RESOLUTION)] = list(RESOLUTION.values())
    return Measurements(name << 8, local, table[volume])


def _container(acts: Any, measured: Measurements) -> Any:
    container = acts.examples.MeasurementContainer()
    container.reserve(len(measured.geometry_id))
    rows = zip(
        measured.geometry_id.tolist(),
        measured.local.tolist(),
        (measured.sigma**2).tolist(),
        strict=True,
    )
    for geometry_id, local, variance in rows:
        module = acts.GeometryIdentifier(geometry_id)
        container.emplaceMeasurement(module, [0, 1], local, variance)
    return container


def _chain(
    acts: Any, detector: Detector, seed_pt: float, field: Any, seeding: dict[str, Any]
) -> list[Any]:
    """The algorithms, from `measurements` to `tracks` in the event store."""
    examples, units, quiet = acts.examples, acts.UnitConstants, acts.logging.FATAL
    geometry = detector.acts_detector.trackingGeometry()
    finder = examples.TrackFindingAlgorithm
    everywhere, branches = acts.GeometryIdentifier(), ([], [15.0], [25.0], [2])
    return [
        examples.SpacePointMaker(
            level=quiet,
            inputMeasurements="measurements",
            outputSpacePoints="space_points",
            trackingGeometry=geometry,
            geometrySelection=[acts.GeometryIdentifier(v << 56) for v in PIXEL_VOLUMES],
        ),
        examples.GridTripletSeedingAlgorithm(
            level=quiet,
            inputSpacePoints="space_points",
            outputSeeds="seeds",
            minPt=seed_pt * units.GeV,
            bFieldInZ=FIELD * units.T,
            **seeding,
        ),
        examples.TrackParamsEstimationAlgorithm(
            level=quiet,
            inputSeeds="seeds",
            outputTrackParameters="parameters",
            outputSeeds="estimated_seeds",
            trackingGeometry=geometry,
            magneticField=field,
        ),
        finder(
            level=quiet,
            inputMeasurements="measurements",
            inputInitialTrackParameters="parameters",
            inputSeeds="estimated_seeds",
            outputTracks="found_tracks",
            trackingGeometry=geometry,
            magneticField=field,
            findTracks=finder.makeTrackFinderFunction(geometry, field, quiet),
            findTracksBrem=finder.makeBremTrackFinderFunction(geometry, field, quiet),
            measurementSelectorCfg=acts.MeasurementSelector.Config([(everywhere, branches)]),
            trackSelectorCfg=acts.TrackSelector.Config(
                minMeasurements=MIN_MEASUREMENTS,
                maxHoles=3,
                maxOutliers=2,
                # Only the hits of tracks are needed, not their parameters at the beam line.
                requireReferenceSurface=False,
            ),
            twoWay=True,
            # A seed within a track that is already found would find it again.
            seedDeduplication=True,
            stayOnSeed=True,
        ),
        examples.GreedyAmbiguityResolutionAlgorithm(
            level=quiet,
            inputTracks="found_tracks",
            outputTracks="tracks",
            maximumSharedHits=3,
            nMeasurementsMin=MIN_MEASUREMENTS,
            maximumIterations=1_000_000,
        ),
    ]


# Lengths in mm, for all collisions and |eta| < 4. A wider impactMax finds more displaced particles,
# but takes more time and finds more wrong tracks.
_SEEDING = {
    "rMin": 20,
    "rMax": 200,
    "zMin": -2000,
    "zMax": 2000,
    "cotThetaMax": float(np.sinh(4)),
    "impactMax": 3,
    "collisionRegionMin": -250,
    "collisionRegionMax": 250,
    "deltaRMin": 1,
    "deltaRMax": 120,
    "rMinMiddle": 40,
    "rMaxMiddle": 160,
    "sigmaScattering": 2,
    "radLengthPerSeed": 0.05,
    "maxSeedsPerSpM": 4,
    "impactWeightFactor": 100,
}
_DISPLACED = {
    "impactMax": 100,
    "collisionRegionMin": -1000,
    "collisionRegionMax": 1000,
    "deltaRMax": 160,
    "sigmaScattering": 5,
}
"""What the second pass changes. Chosen once, on events 2450 to 2452 at pile-up 20: with an
impactMax of 20, 50 or 200, or with the other numbers left as they are, it finds fewer particles."""


def _reader(acts: Any, container: Any, clock: Callable[[], None]) -> Any:
    """Puts the measurements into the event store, then reads the clock."""
    examples = acts.examples

    class MeasurementReader(examples.IReader):
        def __init__(self):
            super().__init__("MeasurementReader", acts.logging.FATAL)
            kind = examples.MeasurementSubset
            self.output = examples.WriteDataHandle(self, kind, "output")
            self.output.initialize("measurements")

        def availableEvents(self):
            return 0, 1

        def read(self, context):
            # A view, since the store must not own the container.
            self.output(context, examples.MeasurementSubset(container, range(len(container))))
            clock()
            return examples.ProcessCode.SUCCESS

    return MeasurementReader()


def _collector(acts: Any, tracks: list[list[int]], clock: Callable[[], None]) -> Any:
    """Reads the clock, then takes the indices of the hits of each track from the event store."""
    examples = acts.examples

    class TrackCollector(examples.IAlgorithm):
        def __init__(self):
            super().__init__("TrackCollector", acts.logging.FATAL)
            self.input = examples.ReadDataHandle(self, examples.ConstTrackContainer, "input")
            self.input.initialize("tracks")

        def execute(self, context):
            clock()
            tracks.extend(_hits_of(examples, track) for track in self.input(context.eventStore))
            return examples.ProcessCode.SUCCESS

    return TrackCollector()


def _hits_of(examples: Any, track: Any) -> list[int]:
    """Indices of the measurements of a track, its outliers left out."""
    return [
        examples.IndexSourceLink.fromSourceLink(state.uncalibratedSourceLink).index()
        for state in track.trackStatesReversed
        if state.hasUncalibratedSourceLink and state.typeFlags.isMeasurement
    ]


def _labels(tracks: list[list[int]], num_hits: int) -> Int32[np.ndarray, " hit"]:
    label = np.full(num_hits, -1, np.int32)
    # Longer tracks come last and take the hits that they share.
    for number, hits in enumerate(sorted(tracks, key=len)):
        label[hits] = number
    return label
