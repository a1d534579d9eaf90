"""Device side: micrographs, the hits that may belong to a track (algorithm section 5, step 3)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from hypertrack_jax.clustering.neighbors import Neighbors, at_hits
from hypertrack_jax.graph.segment import ordered_rows, put_columns


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
) -> Micrographs:
    """All active hits within `hops` steps of a pivot; 1 is the published `pivot-spanned`."""
    num_hits = len(active)
    hit = pivot
    size = jnp.zeros(len(pivot), jnp.int32)
    for _ in range(hops):
        around = at_hits(neighbors.hit, hit, num_hits).reshape(len(hit), -1)
        around = jnp.where(at_hits(active, around, False), around, num_hits)
        hit, found = _distinct(jnp.concatenate([hit, around], axis=1), num_hits, num_slots)
        size = jnp.maximum(size, found)
    return Micrographs(hit, pivot, size)


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


def _distinct(
    hit: Int32[Array, "seed place"], num_hits: int, num_slots: int
) -> tuple[Int32[Array, "seed slot"], Int32[Array, " seed"]]:
    """Each hit once, rising, and how many there are."""
    ordered = jnp.sort(hit, axis=1)
    is_new = jnp.concatenate(
        [jnp.ones((len(hit), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1
    )
    is_new &= ordered < num_hits
    place = jnp.cumsum(is_new, axis=1, dtype=jnp.int32) - 1
    place = jnp.where(is_new, place, num_slots)
    distinct = jnp.full((len(hit), num_slots), num_hits, jnp.int32)
    return put_columns(distinct, ordered, place), is_new.sum(axis=1, dtype=jnp.int32)
