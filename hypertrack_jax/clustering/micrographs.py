"""Device side: micrographs, the hits that may belong to a track (algorithm section 5, step 3)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from hypertrack_jax import device
from hypertrack_jax.clustering.neighbors import Neighbors, at_hits, in_groups
from hypertrack_jax.graph.segment import ordered_rows, put_columns

STEP = 4
"""Hits of each whose neighbours are looked at together: about what a step along a track adds."""


class Micrographs(NamedTuple):
    """Hits around each walk's pivots."""

    hit: Int32[Array, "seed slot"]
    """Indices of the hits, rising; the number of hits fills the rest."""
    pivot: Int32[Array, "seed pivot"]
    """Indices of the pivots, which are among the hits."""
    size: Int32[Array, " seed"]
    """Number of hits, also where the slots do not suffice for them."""


def spanned_micrographs(
    pivot: Int32[Array, "seed pivot"],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    num_slots: int,
    hops: int,
    largest: int | None = None,
) -> Micrographs:
    """All active hits within `hops` steps of a pivot; 1 is the published `pivot-spanned`.

    The search is breadth first, with a queue for each row. Rows go in chunks; a chunk ends when all
    of its rows have ended.

    Args:
      pivot: pivots of each seed, all different, or no hits at all.
      active: True for hits that are in no cluster yet.
      neighbors: kept edges.
      num_slots: capacity. If `size` exceeds it, hits were dropped and `size` is a lower bound.
      hops: largest number of steps.
      largest: the search for a micrograph ends at so many hits; those nearest to its pivots by
        steps are then in it.
    """
    num_rows, num_pivots = pivot.shape
    width = num_pivots if hops == 1 else STEP
    chunk = min(device.blocks().spanned_micrographs, num_rows)
    padded = jnp.pad(pivot, ((0, -num_rows % chunk), (0, 0)), constant_values=len(active))

    def of_chunk(pivot: Int32[Array, "row pivot"]) -> tuple[Array, Array]:
        return _span(pivot, active, neighbors, num_slots, hops, width, largest)

    hit, size = lax.map(of_chunk, padded.reshape(-1, chunk, num_pivots))
    return Micrographs(hit.reshape(-1, num_slots)[:num_rows], pivot, size.reshape(-1)[:num_rows])


def component_micrographs(
    pivot: Int32[Array, "seed pivot"],
    active: Bool[Array, " hit"],
    component: Int32[Array, " hit"],
    num_slots: int,
) -> Micrographs:
    """All active hits of the component of the first pivot: the published `full`.

    Args:
      pivot: pivots of each seed.
      active: True for hits that are in no cluster yet.
      component: a label per hit, below the number of hits, the same within a component.
      num_slots: most hits of a micrograph.
    """
    num_hits = len(active)
    order = jnp.argsort(component, stable=True).astype(jnp.int32)
    place, count = ordered_rows(active[order], component[order], num_hits, num_slots)
    own = at_hits(component, pivot[:, 0], num_hits)
    hit = at_hits(order, at_hits(place, own, num_hits), num_hits)
    return Micrographs(hit, pivot, at_hits(count, own, 0))


class _Queue(NamedTuple):
    """Hits in the order in which they are reached."""

    hit: Int32[Array, "row slot"]
    hops: Int32[Array, "row slot"]
    """Steps from the nearest pivot, never falling along a row."""
    size: Int32[Array, " row"]
    """How many were reached; those past the last slot are lost."""
    head: Int32[Array, " row"]
    """The first whose neighbours have not been looked at."""
    is_open: Bool[Array, "row step"]
    """Which of those at the head have neighbours within reach."""


def _span(
    pivot: Int32[Array, "row pivot"],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    num_slots: int,
    hops: int,
    width: int,
    largest: int | None,
) -> tuple[Int32[Array, "row slot"], Int32[Array, " row"]]:
    """Hits of some micrographs, rising, and their number."""
    num_hits, num_rows = len(active), len(pivot)
    ahead = jnp.arange(width, dtype=jnp.int32)[None]
    none = jnp.full((num_rows, num_slots), num_hits, jnp.int32)
    far = jnp.full((num_rows, num_slots), hops, jnp.int32)

    def with_head(hit: Array, steps: Array, size: Array, head: Array) -> _Queue:
        place = head[:, None] + ahead
        near = jnp.take_along_axis(steps, jnp.minimum(place, num_slots - 1), axis=1) < hops
        is_waiting = place < jnp.minimum(size, num_slots)[:, None]
        # A micrograph that does not fit is searched again in larger rows, so this search may end.
        goes_on = size <= num_slots
        if largest is not None:
            goes_on &= size < largest
        is_open = is_waiting & near & goes_on[:, None]
        return _Queue(hit, steps, size, head, is_open)

    def next_step(queue: _Queue) -> _Queue:
        place = jnp.where(queue.is_open, queue.head[:, None] + ahead, 0)
        source = jnp.take_along_axis(queue.hit, place, axis=1)
        steps = jnp.take_along_axis(queue.hops, place, axis=1) + 1
        source = jnp.where(queue.is_open, source, num_hits)

        # One source at a time: a hit occurs once among the neighbours of a source.
        def add_neighbors(k: Array, reached: tuple[Array, Array, Array]) -> tuple[Array, ...]:
            hit, hops_of, size = reached
            around = at_hits(neighbors.hit, source[:, k], num_hits)
            is_new = at_hits(active, around, False)
            is_new &= ~_is_among(around, hit)
            column = size[:, None] + jnp.cumsum(is_new, axis=1, dtype=jnp.int32) - 1
            if largest is not None:
                is_new &= column < largest
            column = jnp.where(is_new, column, num_slots)
            hop = jnp.broadcast_to(steps[:, k][:, None], around.shape)
            hit, hops_of = (
                put_columns(rows, new, column) for rows, new in ((hit, around), (hops_of, hop))
            )
            return hit, hops_of, size + is_new.sum(axis=1, dtype=jnp.int32)

        reached = queue.hit, queue.hops, queue.size
        hit, hops_of, size = lax.fori_loop(0, width, add_neighbors, reached)
        head = queue.head + queue.is_open.sum(axis=1, dtype=jnp.int32)
        return with_head(hit, hops_of, size, head)

    columns = jnp.broadcast_to(jnp.arange(pivot.shape[1]), pivot.shape)
    start = with_head(
        put_columns(none, pivot, columns),
        put_columns(far, jnp.zeros_like(pivot), columns),
        (pivot < num_hits).sum(axis=1, dtype=jnp.int32),
        jnp.zeros(num_rows, jnp.int32),
    )
    end = lax.while_loop(lambda queue: queue.is_open.any(), next_step, start)
    return jnp.sort(end.hit, axis=1), end.size


def _is_among(
    value: Int32[Array, "row entry"], members: Int32[Array, "row slot"]
) -> Bool[Array, "row entry"]:
    """Whether each value is among the members of its row.

    The comparison goes slot by slot. XLA on CPU fuses it into one pass, in a quarter of the time
    that all slots at once take.
    """
    columns = in_groups(members, -1)

    def with_group(k, is_among):
        for member in columns[k]:
            is_among |= value == member[:, None]
        return is_among

    return lax.fori_loop(0, len(columns), with_group, jnp.zeros(value.shape, bool))
