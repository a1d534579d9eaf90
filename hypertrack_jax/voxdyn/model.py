"""Host side: the Voxel-Dynamics estimator; fit on a stream of events, predict, save and load."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int32, Int64

from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.events.store import replace_file
from hypertrack_jax.events.topology import require_topology, truth_edges
from hypertrack_jax.voxdyn.centroids import fit_centroids
from hypertrack_jax.voxdyn.connectivity import (
    CELL_BITS,
    COUNT_BITS,
    MAX_CELLS,
    MAX_COUNT,
    CellEdges,
    CellHits,
    PackedPairs,
    Rows,
    bucket_size,
    connect_cells,
    connect_hits,
    count_event_pairs,
    group_hits,
    merge_pairs,
    pad_slots,
    push_run,
    to_rows,
)
from hypertrack_jax.voxdyn.voronoi import VoronoiIndex, assign_cells, build_index

FORMAT_VERSION = 1
MAX_ENTRIES = 2**22
"""Entries of C that one look-up reads, which bounds its memory; one long row may exceed it."""


class VoxelDynamics(NamedTuple):
    """A fitted graph constructor: cells of space and which of them particles connect."""

    node2node: str
    """Topology of the true edges that were counted."""
    centroids: Float32[Array | np.ndarray, "cell 3"]
    """Cell centres in mm."""
    row_offsets: Int32[Array | np.ndarray, " cell_plus_1"]
    """Row u of C holds the entries from `row_offsets[u]` to `row_offsets[u + 1]`."""
    columns: Int32[Array | np.ndarray, " entry"]
    """Cell v of each entry, ascending within a row."""
    counts: Int32[Array | np.ndarray, " entry"]
    """C[u, v]: true edges counted between the two cells; saturates."""
    num_events: int
    """Events counted."""
    objective: Float64[np.ndarray, " iteration"]
    """Mean squared distance of hit and centroid before each iteration of the fit, in mm^2."""
    index: VoronoiIndex
    """Search index over the centroids."""

    @property
    def num_cells(self) -> int:
        """V."""
        return len(self.centroids)

    @property
    def rows(self) -> Rows:
        """C in compressed rows."""
        return Rows(self.row_offsets, self.columns, self.counts)


class CandidateEdges(NamedTuple):
    """The event graph before any learning, sorted by (receiver, sender)."""

    senders: Int32[np.ndarray, " edge"]
    """Hit at the start of each edge."""
    receivers: Int32[np.ndarray, " edge"]
    """Hit at its end."""
    counts: Int32[np.ndarray, " edge"]
    """C at the cells of both: how often particles made such a pair in training."""


def fit_voxdyn(
    events: Callable[[], Iterable[Event]],
    ncell: int,
    node2node: str,
    num_iterations: int = 10,
    seed: int = 0,
    max_centroid_hits: int = 2_000_000,
) -> VoxelDynamics:
    """Fits one estimator; `fit_voxdyns` says how."""
    return fit_voxdyns(events, [ncell], node2node, num_iterations, seed, max_centroid_hits)[0]


def fit_voxdyns(
    events: Callable[[], Iterable[Event]],
    ncells: Sequence[int],
    node2node: str,
    num_iterations: int = 10,
    seed: int = 0,
    max_centroid_hits: int = 2_000_000,
) -> list[VoxelDynamics]:
    """Fits estimators with different numbers of cells in two passes over the events.

    The first pass draws a bounded sample of particle hits, to which the centroids are fitted; the
    second counts C. Memory does not grow with the number of events, but for the entries of C, and
    the result does not depend on their order.

    Args:
      events: called once for each pass; gives the events one by one.
      ncells: numbers of cells.
      node2node: topology of the true edges.
      num_iterations: Lloyd iterations.
      seed: decides the sample of hits and the first centroids.
      max_centroid_hits: most hits that the centroids are fitted to.

    Returns:
      An estimator for each of `ncells`.

    Raises:
      ValueError: an unknown topology, or a number of cells that is not possible.
    """
    require_topology(node2node)
    for ncell in ncells:
        if not 1 <= ncell <= MAX_CELLS:
            raise ValueError(f"--ncell={ncell}: expected a number of cells from 1 to {MAX_CELLS}.")
    hits = sample_particle_hits(events(), max_centroid_hits, seed)
    fits = [fit_centroids(hits, ncell, num_iterations, seed) for ncell in ncells]
    indices = [_to_device(build_index(fit.centroids)) for fit in fits]
    packed, num_events = _count_pairs(events(), indices, node2node)
    return [
        VoxelDynamics(
            node2node,
            index.centroids,
            *_to_device(to_rows(pairs, len(index.centroids))),
            num_events=num_events,
            objective=fit.objective,
            index=index,
        )
        for fit, index, pairs in zip(fits, indices, packed, strict=True)
    ]


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
        draw = np.random.default_rng([seed, event.event_id]).random(len(position))
        draws, positions = np.append(draws, draw), np.vstack([positions, position])
        # A cut only now and then: each costs a pass over the whole sample.
        if len(draws) > 2 * max_hits:
            draws, positions = _lowest(draws, positions, max_hits)
    return _lowest(draws, positions, max_hits)[1]


def predict_edges(
    vd: VoxelDynamics, position: Float32[np.ndarray, "hit 3"], min_count: int = 1
) -> CandidateEdges:
    """Joins all hits whose cells C connects.

    The graph is symmetric and has a self-loop for each hit whose cell C connects with itself.

    Args:
      vd: the estimator.
      position: hit positions in mm.
      min_count: smallest C[u, v] that makes edges.

    Returns:
      The edges.
    """
    num_hits = len(position)
    if num_hits == 0:
        return CandidateEdges(*(np.zeros(0, np.int32) for _ in range(3)))
    cell = np.asarray(assign_cells(vd.index, _pad(position)))[:num_hits]
    order, hits = group_hits(cell)
    offsets = np.asarray(vd.row_offsets)
    row_length = offsets[hits.cell + 1] - offsets[hits.cell]
    hits = pad_slots(hits, bucket_size(num_hits), vd.num_cells)
    keys = [
        _pack_edges(_lookup_slots(vd.rows, hits, first, last, num_entries, min_count), order)
        for first, last, num_entries in _slot_ranges(row_length)
    ]
    return _sort_edges(np.concatenate(keys))


def voxdyn_path(directory: Path, node2node: str, ncell: int) -> Path:
    """Path of an estimator's file, such as `voxdyn_hyper_16384.npz`."""
    return directory / f"voxdyn_{node2node}_{ncell}.npz"


def save_voxdyn(path: Path, vd: VoxelDynamics) -> Path:
    """Writes an estimator, whole or not at all; the search index is made anew on loading.

    Raises:
      OSError: no space or no permission.
    """
    with replace_file(path) as file:
        np.savez(
            file,
            format_version=FORMAT_VERSION,
            **{name: getattr(vd, name) for name in VoxelDynamics._fields if name != "index"},
        )
    return path


def load_voxdyn(
    path: Path, node2node: str | None = None, ncell: int | None = None
) -> VoxelDynamics:
    """Reads an estimator that `save_voxdyn` wrote.

    Args:
      path: the file.
      node2node: the topology it must have been fitted with; None takes any.
      ncell: the number of cells it must have; None takes any.

    Returns:
      The estimator.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another format version, or not what was asked for.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; make it with experiments/pretrain_voxdyn.py "
            f"--node2node={node2node or 'hyper'} --ncell={ncell or 16384}."
        )
    fields = _read_fields(path)
    version = int(fields.pop("format_version"))
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version}, but this program reads version {FORMAT_VERSION}; "
            "make it anew with experiments/pretrain_voxdyn.py."
        )
    vd = _unpack(path, fields)
    for flag, found, asked in (
        ("node2node", vd.node2node, node2node),
        ("ncell", vd.num_cells, ncell),
    ):
        if asked is not None and found != asked:
            raise ValueError(
                f"{path}: was fitted with --{flag}={found}, but --{flag}={asked} is asked for; "
                f"run experiments/pretrain_voxdyn.py --{flag}={asked}."
            )
    return vd


def _count_pairs(
    events: Iterable[Event], indices: list[VoronoiIndex], node2node: str
) -> tuple[list[PackedPairs], int]:
    """Counts C for several divisions of space in one pass; also the number of events."""
    runs: list[list[PackedPairs]] = [[] for _ in indices]
    num_events = 0
    for event in events:
        senders, receivers = truth_edges(event, node2node)
        position = _pad(event.position)
        for k, index in enumerate(indices):
            cell = np.asarray(assign_cells(index, position))
            run = count_event_pairs(senders, receivers, cell, len(index.centroids))
            runs[k] = push_run(runs[k], run)
        num_events += 1
    return [merge_pairs(parts) for parts in runs], num_events


def _lowest(draws: np.ndarray, positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries with the lowest draws, ascending."""
    chosen = np.argsort(draws)[:size]
    return draws[chosen], positions[chosen]


def _pad(position: Float32[np.ndarray, "hit 3"]) -> Float32[np.ndarray, "padded 3"]:
    """Repeats the last hit up to a bucket size; copies are as quick to assign as real hits."""
    num_hits = len(position)
    return np.pad(position, ((0, bucket_size(num_hits) - num_hits), (0, 0)), mode="edge")


def _slot_ranges(row_length: Int32[np.ndarray, " slot"]) -> Iterator[tuple[int, int, int]]:
    """Cuts the slots into ranges whose rows hold at most `MAX_ENTRIES`, or else one slot each.

    Yields:
      First slot, the slot after the last, and the number of entries.
    """
    ends = np.cumsum(row_length, dtype=np.int64)
    first, done = 0, 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, done + MAX_ENTRIES, side="right")))
        yield first, last, int(ends[last - 1]) - done
        first, done = last, int(ends[last - 1])


def _lookup_slots(
    rows: Rows, hits: CellHits, first: int, last: int, num_entries: int, min_count: int
) -> CellEdges:
    """Edges into the hits of a range of slots."""
    slots = np.array([first, last], np.int32)
    pairs = connect_cells(rows, hits, slots, np.int32(min_count), capacity=bucket_size(num_entries))
    num_edges = int(1.01 * pairs.num_edges) + 1
    edges = connect_hits(pairs, hits, capacity=bucket_size(num_edges))
    if edges.is_overflow:
        raise ValueError(
            f"about {num_edges} edges are too many for one look-up; choose more cells, a larger "
            "min_count or fewer hits."
        )
    return edges


def _pack_edges(edges: CellEdges, order: Int64[np.ndarray, " hit"]) -> Int64[np.ndarray, " edge"]:
    """Edges as numbers that sort by (receiver, sender), the hits in their own order again."""
    num_edges = int(edges.num_edges)
    senders, receivers, counts = (np.asarray(part)[:num_edges] for part in edges[:3])
    return (order[receivers] << CELL_BITS | order[senders]) << COUNT_BITS | counts


def _sort_edges(key: Int64[np.ndarray, " edge"]) -> CandidateEdges:
    """Sorts and unpacks edges.

    On the host, where sorting 64-bit integers takes 8 ns per edge; XLA takes 60 ns.
    """
    key.sort()
    counts = (key & MAX_COUNT).astype(np.int32)
    key >>= COUNT_BITS
    senders = (key & (2**CELL_BITS - 1)).astype(np.int32)
    key >>= CELL_BITS
    return CandidateEdges(senders, key.astype(np.int32), counts)


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    try:
        # np.load leaves a file that it opened itself open when the file is damaged.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in ("format_version", *file.files)}
    # What np.load raises for a zip cut short, a flipped bit, an empty file, another kind of file.
    except (zipfile.BadZipFile, EOFError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(
            f"{path}: damaged or not a Voxel-Dynamics file ({error}); remove it and make it anew "
            "with experiments/pretrain_voxdyn.py."
        ) from error


def _unpack(path: Path, fields: dict[str, np.ndarray]) -> VoxelDynamics:
    """The estimator from its arrays, with a search index."""
    missing = set(VoxelDynamics._fields) - {"index"} - fields.keys()
    if missing:
        raise ValueError(
            f"{path}: lacks {', '.join(sorted(missing))}; make it anew with "
            "experiments/pretrain_voxdyn.py."
        )
    return VoxelDynamics(
        node2node=str(fields["node2node"]),
        num_events=int(fields["num_events"]),
        objective=fields["objective"],
        index=_to_device(build_index(fields["centroids"])),
        **{name: jnp.asarray(fields[name]) for name in ("centroids", *Rows._fields)},
    )


def _to_device(tree):
    return jax.tree.map(jnp.asarray, tree)
