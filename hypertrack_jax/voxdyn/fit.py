"""Host side: fits Voxel-Dynamics to a stream of events, in bounded memory and resumable."""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float32

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.events.topology import require_topology, truth_edges
from hypertrack_jax.files import locked
from hypertrack_jax.memory import require_memory
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz
from hypertrack_jax.streams import stream
from hypertrack_jax.voxdyn.centroids import CentroidFit, fit_centroids
from hypertrack_jax.voxdyn.connectivity import (
    MAX_CELLS,
    PackedPairs,
    count_event_pairs,
    merge_pairs,
    mirror_rows,
    upper_rows,
)
from hypertrack_jax.voxdyn.counting import PairCounter
from hypertrack_jax.voxdyn.model import VoxelDynamics, make_voxdyn, pad_hits
from hypertrack_jax.voxdyn.voronoi import VoronoiIndex, assign_cells, build_index

Item = TypeVar("Item")
Result = TypeVar("Result")
ShowProgress = Callable[[Sequence[int], str], Iterable[int]]
"""Passes event numbers on and shows how far it is; the text says what is being done."""
SYMMETRIES = np.array([[1, 1, 1], [-1, -1, 1], [1, 1, -1], [-1, -1, -1]], np.float32)
"""Signs of x, y, z that map detector and field onto themselves: all modules come in pairs opposite
each other in azimuth, and in pairs at z and -z. An event that is turned or mirrored so is as good
as another event."""
MAX_COPIES = 64
"""Most copies of an event: the symmetries at 16 azimuths."""
_CENTROIDS = NpzFormat(
    kind="a file of centroids",
    remedy="remove its directory and fit anew",
    arrays={
        "centroids": ArrayType(np.float32, ("cell", 3)),
        "objective": ArrayType(np.float64, ("iteration",)),
        "space": ArrayType(np.float32, (2, 3)),
    },
)
_GOLDEN = (5**0.5 - 1) / 2
_BYTES_PER_CELL = 2000
"""Memory that a fit takes for each cell: search index, neighbour lists and their making."""


class Training(NamedTuple):
    """What Voxel-Dynamics is fitted to, and how."""

    event_ids: Sequence[int]
    """Events to fit to; the result does not depend on their order."""
    load_event: Callable[[int], Event]
    """Reads an event; called from several threads."""
    num_iterations: int = 10
    """Lloyd iterations of the centroid fit."""
    seed: int = 0
    """Decides the sample of hits and the first centroids."""
    max_centroid_hits: int = 2_000_000
    """Most hits that the centroids are fitted to."""
    num_copies: int = 1
    """Copies of each event that C counts; see `copy_of`."""


class Centroids(NamedTuple):
    """A division of space, and the hits that it was fitted to."""

    fit: CentroidFit
    space: Float32[np.ndarray, "2 3"]
    """Smallest and largest coordinates of those hits, in mm."""


def fit_voxdyn(
    events: Iterable[Event],
    ncell: int,
    node2node: str,
    num_iterations: int = 10,
    seed: int = 0,
    max_centroid_hits: int = 2_000_000,
) -> VoxelDynamics:
    """Fits one estimator to events in memory; `fit_voxdyns` says how.

    Args:
      events: the events, each with a number of its own.
      ncell: number of cells.
      node2node: topology of the true edges.
      num_iterations: iterations of the centroid fit.
      seed: decides the sample of hits and the first centroids.
      max_centroid_hits: most hits that the centroids are fitted to.

    Raises:
      UserError: two events have one number, or as of `fit_voxdyns`.
    """
    by_id: dict[int, Event] = {}
    for event in events:
        if event.event_id in by_id:
            raise UserError(
                f"two events have the number {event.event_id}; give each one of its own, such as "
                "by event._replace(event_id=...)."
            )
        by_id[event.event_id] = event
    training = Training(list(by_id), by_id.__getitem__, num_iterations, seed, max_centroid_hits)
    with tempfile.TemporaryDirectory() as directory:
        return next(fit_voxdyns(training, [ncell], [node2node], Path(directory)))


def fit_voxdyns(
    training: Training,
    ncells: Sequence[int],
    node2nodes: Sequence[str],
    directory: Path,
    progress: ShowProgress = lambda event_ids, _: event_ids,
) -> Iterator[VoxelDynamics]:
    """Fits an estimator for each number of cells and each topology, in two passes over the events.

    The first pass draws a bounded sample of particle hits, to which the centroids are fitted; the
    second counts C for all of them. Memory does not grow with the number of events, except for the
    entries of C, of which the counting holds a bounded part. The result depends neither on the
    order of the events nor on how often the fit was stopped and resumed.

    An unfinished fit is kept in a directory of its own, one for each choice of events, settings,
    cells and topologies. A fit that was stopped goes on from there. The directory is removed after
    the last estimator has been taken.

    Args:
      training: events and settings.
      ncells: numbers of cells.
      node2nodes: topologies of the true edges.
      directory: where unfinished fits are kept, in directories named `voxdyn.unfinished.*`.
      progress: shows progress.

    Yields:
      The estimators, in the order of `ncells` and, for each, of `node2nodes`.

    Raises:
      UserError: an unknown topology, a number of cells that is not possible or too large for the
        memory, the unfinished fit is damaged, or another process works on the same fit.
      OSError: no space or no permission.
    """
    for node2node in node2nodes:
        require_topology(node2node)
    if not 1 <= training.num_copies <= MAX_COPIES:
        raise UserError(
            f"num_copies={training.num_copies}: expected a number from 1 to {MAX_COPIES}."
        )
    for ncell in ncells:
        if not 1 <= ncell <= MAX_CELLS:
            raise UserError(f"ncell={ncell}: expected a number of cells from 1 to {MAX_CELLS}.")
        require_memory(_BYTES_PER_CELL * ncell, f"ncell={ncell}", "fewer cells")
    place = unfinished_place(directory, training, ncells, node2nodes)
    with locked(place / "lock", "this fit"):
        centroids = _fit_all_centroids(training, ncells, place, progress)
        indices = jax.device_put([build_index(each.fit.centroids) for each in centroids])
        counters = open_counters(place, centroids, node2nodes, training.num_copies)
        count_events(training, indices, counters, progress)
        for (found, node2node), counter in zip(
            product(centroids, node2nodes), counters.values(), strict=True
        ):
            yield estimator(node2node, found, counter)
        shutil.rmtree(place, ignore_errors=True)


def open_counters(
    directory: Path, centroids: Sequence[Centroids], node2nodes: Sequence[str], num_copies: int
) -> dict[tuple[int, str], PairCounter]:
    """A counter for each division of space and topology, by (place in `centroids`, topology)."""
    counters = {}
    for (k, found), node2node in product(enumerate(centroids), node2nodes):
        ncell = len(found.fit.centroids)
        counters[k, node2node] = PairCounter(
            directory / f"{node2node}_{ncell}",
            {
                "node2node": node2node,
                "ncell": ncell,
                "num_copies": num_copies,
                "centroids": zlib.crc32(found.fit.centroids.tobytes()),
            },
        )
    return counters


def count_events(
    training: Training,
    indices: Sequence[VoronoiIndex],
    counters: dict[tuple[int, str], PairCounter],
    progress: ShowProgress = lambda event_ids, _: event_ids,
) -> None:
    """Adds to each counter the events that it has not counted, and writes the counts.

    Counts are kept whatever ends this early.

    Raises:
      UserError: a counter holds events that are not among those of `training`.
    """
    for counter in counters.values():
        foreign = set(counter.counted) - set(training.event_ids)
        if foreign:
            raise UserError(
                f"{counter.directory} holds an unfinished count with event {min(foreign)}, which "
                "is not among the events asked for; ask for it too, or remove the directory."
            )

    def count(event_id: int) -> tuple[int, dict[tuple[int, str], PackedPairs]]:
        wanted = [key for key, counter in counters.items() if event_id not in counter.counted]
        event = training.load_event(event_id)
        return event_id, _count_event(event, indices, wanted, training.num_copies)

    left = [
        event_id
        for event_id in training.event_ids
        if any(event_id not in counter.counted for counter in counters.values())
    ]
    try:
        for event_id, pairs in _in_threads(count, progress(left, "counting pairs")):
            for key, found in pairs.items():
                counters[key].add(event_id, found)
    finally:
        for counter in counters.values():
            counter.flush()


def estimator(node2node: str, centroids: Centroids, counter: PairCounter) -> VoxelDynamics:
    """The estimator of what has been counted so far."""
    upper = upper_rows(counter.merged(), len(centroids.fit.centroids))
    histogram = np.bincount(upper.counts).astype(np.int64)
    return make_voxdyn(
        node2node,
        centroids.fit.centroids,
        mirror_rows(upper),
        space=centroids.space,
        num_events=len(counter.counted),
        objective=centroids.fit.objective,
        histogram=histogram,
    )


def sample_particle_hits(
    events: Iterable[Event], max_hits: int, seed: int
) -> Float32[np.ndarray, "hit 3"]:
    """A random sample of the particle hits of all events, of bounded size.

    Every hit draws a number from (seed, event id); the hits with the lowest are kept, whatever the
    order in which the events come.

    Args:
      events: the events.
      max_hits: size of the sample, unless there are fewer hits.
      seed: decides the sample.

    Returns:
      Positions in mm.
    """
    draws, positions = np.zeros(0), np.zeros((0, 3), np.float32)
    for event in events:
        position = event.position[event.hit_particle != NOISE]
        draw = stream("sample hits for centroids", seed, event.event_id).random(len(position))
        if len(draws) >= max_hits:
            # Only draws below the largest one kept can enter; most hits of late events cannot.
            is_low = draw < draws[:max_hits].max()
            draw, position = draw[is_low], position[is_low]
        draws, positions = np.append(draws, draw), np.vstack([positions, position])
        # Cuts are rare, because each costs a pass over the whole sample.
        if len(draws) > 1.25 * max_hits:
            draws, positions = _lowest(draws, positions, max_hits)
    return _lowest(draws, positions, max_hits)[1]


def copy_of(position: Float32[np.ndarray, "hit 3"], number: int) -> Float32[np.ndarray, "hit 3"]:
    """The hits of an event, in mm, turned and mirrored, as copy 0, 1, ... of the event.

    Copies 0 to 3 are those of `SYMMETRIES`, which are exact. Each further four are turned about the
    beam first, by multiples of half a turn times the golden ratio, which fall evenly between the
    former ones. The modules of such a copy do not lie on modules: its tracks are as good as others,
    but its gaps are not where the detector has gaps.
    """
    turns, symmetry = divmod(number, len(SYMMETRIES))
    angle = np.pi * ((turns * _GOLDEN) % 1)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x, y, z = position.T
    turned = np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1) if turns else position
    return SYMMETRIES[symmetry] * turned


def _fit_all_centroids(
    training: Training, ncells: Sequence[int], directory: Path, progress: ShowProgress
) -> list[Centroids]:
    """The centroids of each number of cells: those in `directory`, or else newly fitted ones."""
    paths = [directory / f"centroids_{ncell}.npz" for ncell in ncells]
    found = [_load_centroids(path) for path in paths]
    if any(one is None for one in found):
        ids = progress(training.event_ids, "sampling hits")
        events = (event for _, event in _in_threads(lambda i: (i, training.load_event(i)), ids))
        hits = sample_particle_hits(events, training.max_centroid_hits, training.seed)
        for k, (ncell, path) in enumerate(zip(ncells, paths, strict=True)):
            if found[k] is None:
                fit = fit_centroids(hits, ncell, training.num_iterations, training.seed)
                new = Centroids(fit, np.stack([hits.min(axis=0), hits.max(axis=0)]))
                write_npz(path, _CENTROIDS, {"space": new.space, **fit._asdict()})
                found[k] = new
    return [one for one in found if one is not None]


def unfinished_place(
    directory: Path, training: Training, ncells: Sequence[int], node2nodes: Sequence[str]
) -> Path:
    """The directory of an unfinished fit: one for each choice of what the fit depends on."""
    settings = {
        "event_ids": sorted(training.event_ids),
        "ncells": sorted(ncells),
        "node2nodes": sorted(node2nodes),
        "num_iterations": training.num_iterations,
        "seed": training.seed,
        "max_centroid_hits": training.max_centroid_hits,
        "num_copies": training.num_copies,
    }
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return directory / f"voxdyn.unfinished.{name}"


def _load_centroids(path: Path) -> Centroids | None:
    """The centroids of an unfinished fit; None where there are none."""
    if not path.is_file():
        return None
    arrays = read_npz(path, _CENTROIDS)
    return Centroids(CentroidFit(arrays["centroids"], arrays["objective"]), arrays["space"])


def _count_event(
    event: Event,
    indices: Sequence[VoronoiIndex],
    wanted: Sequence[tuple[int, str]],
    num_copies: int,
) -> dict[tuple[int, str], PackedPairs]:
    """The pairs of one event for each (place in `indices`, topology) that is wanted."""
    # The copies have the same true edges: distances do not change.
    edges = {name: truth_edges(event, name) for name in {name for _, name in wanted}}
    position = pad_hits(event.position)
    pairs: dict[tuple[int, str], list[PackedPairs]] = {key: [] for key in wanted}
    for number in range(num_copies):
        copy = copy_of(position, number)
        # The topologies of one division share its cells.
        divisions = {k for k, _ in wanted}
        cells = {k: np.asarray(assign_cells(indices[k], copy)) for k in divisions}
        for k, name in wanted:
            num_cells = len(indices[k].centroids)
            pairs[k, name].append(count_event_pairs(*edges[name], cells[k], num_cells))
    return {key: merge_pairs(parts) for key, parts in pairs.items()}


def _in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, computed a little ahead; NumPy and XLA let the threads run side by side."""
    num_threads = os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _lowest(draws: np.ndarray, positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries with the lowest draws, ascending."""
    chosen = np.argsort(draws)[:size]
    return draws[chosen], positions[chosen]
