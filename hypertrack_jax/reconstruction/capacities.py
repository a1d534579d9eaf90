"""Host side: the capacities that an event is tried in first; they follow from its number of hits.

An event that exceeds them is run again, stage by stage, in what it needs (`capacities.py` of the
package has the ladder and the rule).
"""

import math
from typing import Any, NamedTuple

from hypertrack_jax.capacities import capacity_for, power_above
from hypertrack_jax.clustering.search import SearchSizes
from hypertrack_jax.clustering.transformer import chunk_size
from hypertrack_jax.device import free_memory
from hypertrack_jax.errors import UserError
from hypertrack_jax.graph.event_graph import LEAST_EDGES
from hypertrack_jax.memory import require_memory
from hypertrack_jax.networks.continuations import LEAST_WIDTH
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.lookup import BLOCK, TOO_MANY
from hypertrack_jax.voxdyn.model import VoxelDynamics

LEAST_HITS = 1792
"""Room for hits that every event gets: small events share one set of programs. Of 100 events at
pile-up 2 the largest has 1756 hits. No step of the ladder: the next one, 2048, is the next size."""
PARTNERS = {"hyper": 12, "cricket": 5, "eom": 4}
"""Edges of a hit that its own particle makes, about."""
CROWD = 1.1
"""How much more often two hits of an event are joined than two cells drawn at random."""
EDGE_MARGIN = 1.25
"""Room for events that are denser than the average: the densest of 18 simulated
events, of 230 to 1.5e5 hits, takes up 94 % of it."""
BLOCK_MARGIN = 1.2
"""The same for the rows of C, whose number varies less."""
HITS_PER_SEED = 16
"""Places for hits per micrograph of a round: about a track of ten hits, and padding."""
NEIGHBORS = {1: {4096: 32, 32768: 64, 2**31: 128}, 2: {65536: 16, 2**31: 32}}
"""Kept edges of a hit, by the steps that a micrograph reaches, and by the largest number of places
for hits that they are for: more hits lie nearer together. Micrographs that reach two steps or more
have sparse graphs."""
SLOTS = {32768: 64, 2**31: 128}
"""Hits of a micrograph, by the largest number of places for hits; fewer where the tune sets a
limit."""
SEARCH_ROUNDS = 200
"""Rounds of the search."""
TRUE_PAIRS = 1.5
"""Pairs of a hit that the filter keeps because they are true, about."""
FALSE_PAIRS = {"none": (2.12, 1.3, 0.65), "shape": (0.48, 0.215, 0.089)}
"""False pairs that a hit keeps behind the pairs, the first and the second round, about: so many
times a power, `CROWDING`, of the number that it begins with. By `FilterTune.cells`."""
CROWDING = 0.6
"""Below 1: the more pairs a hit begins with, the smaller the share of them that it keeps."""
FILTER_MARGIN = 1.08
"""Room in the filter for events that are denser than the average: in 67 runs on simulated events,
of 236 to 1.5e5 hits, at most 98 % of it was taken up."""
PLACES_OF_SECTOR = 24
"""Places of the lists for each hit of a sector of a full event."""
CROWDED, FEW = 4, 16
"""Edges of the hit that has most: so many times the mean, and a few."""
BYTES_PER_PAIR_KEPT = 700
"""Memory that the filter takes for each pair of its capacity, about."""
BYTES_PER_EDGE = 120
"""Memory that graph and edge predictor take for each edge of their capacity, about."""
BYTES_PER_NEIGHBOR = 40
"""Memory that the rows of kept edges take for each place, about."""
MOST_NEIGHBORS = 1024
"""Kept edges of a hit that are taken; tracks have tens of hits."""
BYTES_PER_SLOT = 64
"""Memory that a round takes for each place of its micrographs, about."""
BYTES_PER_TOKEN, BYTES_PER_PAIR = 4096, 12
"""Memory that the transformer takes for each hit of the micrographs that it sees together, and for
each pair of hits of one: what its layers give, and the scores of an attention head."""


class GraphCapacities(NamedTuple):
    """Room in the candidate graph, beside that for hits."""

    num_blocks: int
    """Blocks of the rows of C, see `voxdyn.lookup`."""
    num_edges: int


class ListCapacities(NamedTuple):
    """Room for what the pairs of a graph are made from, before a filter."""

    num_blocks: int
    num_places: int
    """Places in the lists of all occupied cells."""


class FilterCapacities(NamedTuple):
    """Room in the filter, whose rounds come one after another."""

    num_pairs: int
    """Pairs that the pair filter keeps."""
    num_neighbors: int
    """Of a hit, by these pairs."""
    num_first: int
    """Pairs that the first round keeps."""
    num_neighbors_second: int
    num_second: int
    """Pairs that the second round keeps."""


class KeptCapacities(NamedTuple):
    """Room for the edges above the threshold."""

    num_neighbors: int
    """Kept edges of a hit; 0 where only the components are asked for."""


class FirstCapacities(NamedTuple):
    """The capacities of all stages."""

    num_hits: int
    """Places for hits, one of which stays empty."""
    graph: GraphCapacities | ListCapacities
    """Of the candidate graph, or of what a filter makes one from."""
    kept: KeptCapacities
    search: SearchSizes
    edge_filter: FilterCapacities | None = None


def first_capacities(
    num_hits: int, voxdyn: VoxelDynamics, min_count: int, tune: Tune
) -> FirstCapacities:
    """The capacities that an event of so many hits is tried in first."""
    cluster = tune.cluster
    num_places = capacity_for(num_hits + 1) if num_hits >= LEAST_HITS else LEAST_HITS
    num_hits = step_above(num_hits)
    graph, edge_filter = graph_capacities(num_hits, voxdyn, min_count), None
    if tune.edge_filter.filter != "none":
        num_edges = expected_edges(num_hits, voxdyn, min_count)
        graph = list_capacities(num_hits, voxdyn, num_edges)
        edge_filter = filter_capacities(num_hits, num_edges // 2, tune.edge_filter.cells)
    has_search = cluster.cluster == "transformer"
    of_hops = NEIGHBORS[min(cluster.micrograph_hops, 2)]
    kept = KeptCapacities(_of(of_hops, num_places) if has_search else 0)
    num_slots = _of(SLOTS, num_places)
    search = SearchSizes(
        num_slots=min(num_slots, cluster.largest_micrograph or num_slots),
        num_rounds=SEARCH_ROUNDS,
        num_seeds=num_places // HITS_PER_SEED,
    )
    return FirstCapacities(num_places, graph, kept, search, edge_filter)


def step_above(num_hits: int) -> int:
    """The largest event that is tried in the same capacities: eight steps to each factor of two.

    Events of about one size then share all their programs, though each capacity has steps of its
    own: 100 events at pile-up 20 share 6, and not 12.
    """
    if num_hits < LEAST_HITS:
        return LEAST_HITS - 1
    # The least step, 256, leads from 1792 to 2048.
    step = max(power_above(num_hits + 1, 2) // 16, LEAST_HITS // 7)
    return -(-(num_hits + 1) // step) * step - 1


def expected_edges(num_hits: int, voxdyn: VoxelDynamics, min_count: int) -> int:
    """Edges of the candidate graph of so many hits, about; those of `LEAST_HITS` at least.

    A hit has edges to hits of its particle, and to as many others as the density of C tells: where
    2 % of it are connected, that was measured to be 42 edges for each hit of 1300, 354 of 14 600
    and 2585 of 109 000.
    """
    num_hits = max(num_hits, LEAST_HITS)
    connected = 2 * int(voxdyn.histogram[min_count:].sum()) / voxdyn.num_cells**2
    degree = PARTNERS[voxdyn.node2node] + CROWD * min(connected, 1.0) * num_hits
    return int(degree * num_hits)


def graph_capacities(num_hits: int, voxdyn: VoxelDynamics, min_count: int) -> GraphCapacities:
    """Room for the candidate graph of so many hits."""
    num_hits = max(num_hits, LEAST_HITS)
    num_rows = min(BLOCK_MARGIN * num_hits, voxdyn.num_cells)
    num_edges = EDGE_MARGIN * expected_edges(num_hits, voxdyn, min_count)
    return GraphCapacities(
        num_blocks=capacity_for(int(_blocks_per_row(voxdyn) * num_rows)),
        num_edges=capacity_for(int(num_edges), LEAST_EDGES),
    )


def list_capacities(
    num_hits: int, voxdyn: VoxelDynamics, num_edges: int, is_sector: bool = False
) -> ListCapacities:
    """Room for what a filter makes pairs from.

    There is one list for each occupied cell. Of 46 simulated events, of 290 to 1.5e5 hits, the
    densest took up 96 % of the places and 81 % of the blocks, before the ladder.

    Args:
      num_hits: hits of the event.
      voxdyn: the estimator.
      num_edges: `expected_edges` of the whole graph.
      is_sector: whether the hits may be those of a sector, as dense as a whole event.
    """
    num_hits = max(num_hits, LEAST_HITS)
    num_occupied = voxdyn.num_cells * (1 - math.exp(-num_hits / voxdyn.num_cells))
    num_places = num_edges // 2 * num_occupied / num_hits
    least = PLACES_OF_SECTOR * num_hits if is_sector else 0
    return ListCapacities(
        capacity_for(int(_blocks_per_row(voxdyn) * num_occupied)),
        capacity_for(int(max(num_places, least))),
    )


def filter_capacities(num_hits: int, num_raw: int, cells: str) -> FilterCapacities:
    """Room in the filter of so many hits, by the number of the pairs that it begins with.

    `cells` is that of the `FilterTune`.
    """
    num_hits = max(num_hits, LEAST_HITS)
    crowding = (num_raw / num_hits) ** CROWDING
    kept = [
        FILTER_MARGIN * min(num_hits * (TRUE_PAIRS + factor * crowding), num_raw)
        for factor in FALSE_PAIRS[cells]
    ]
    num_pairs, num_first, num_second = (capacity_for(int(number), LEAST_EDGES) for number in kept)
    neighbors, neighbors_second = (
        capacity_for(int(CROWDED * 2 * number / num_hits) + FEW, LEAST_WIDTH) for number in kept[:2]
    )
    return FilterCapacities(num_pairs, neighbors, num_first, neighbors_second, num_second)


def require_room(
    capacities: GraphCapacities | KeptCapacities | SearchSizes | Any,
    num_hits: int,
    num_events: int = 1,
) -> None:
    """Refuses capacities that the memory does not hold.

    Args:
      capacities: of a stage; a stage without capacities takes no more than the one before it.
      num_hits: hits of the event, or of the largest of several.
      num_events: events that are run at once, in the same memory.

    Raises:
      UserError: the memory, or 32-bit indices, are too small.
    """
    num_bytes = 0
    if isinstance(capacities, GraphCapacities):
        if capacities.num_edges > TOO_MANY:
            raise UserError(
                "the graph of this event has more edges than 32-bit indices reach; choose a larger "
                "min_count, more cells or fewer hits."
            )
        num_bytes = BYTES_PER_EDGE * capacities.num_edges
    elif isinstance(capacities, FilterCapacities):
        if capacities.num_pairs > TOO_MANY // 2:
            raise UserError(
                "the filter keeps more pairs of this event than 32-bit indices reach; choose a "
                "larger min_count, more cells or fewer hits."
            )
        num_bytes = BYTES_PER_PAIR_KEPT * capacities.num_pairs
    elif isinstance(capacities, KeptCapacities):
        if capacities.num_neighbors > MOST_NEIGHBORS:
            raise UserError(
                f"a hit has more than {MOST_NEIGHBORS} neighbours by edges above the threshold: "
                "hits lie at one place, or are no detector's; look at the positions, or choose a "
                "larger edge_threshold."
            )
        num_bytes = BYTES_PER_NEIGHBOR * num_hits * capacities.num_neighbors
    elif isinstance(capacities, SearchSizes):
        num_slots = capacities.num_slots
        num_bytes = BYTES_PER_SLOT * capacities.num_seeds * num_slots
        per_micrograph = num_slots * (BYTES_PER_TOKEN + BYTES_PER_PAIR * num_slots)
        num_bytes += chunk_size(capacities.num_seeds) * per_micrograph
    several = f"{num_events} events at once, the largest" if num_events > 1 else "an event"
    room = ", ".join(f"{name}={value}" for name, value in capacities._asdict().items())
    require_memory(
        num_events * num_bytes,
        f"{several} of {num_hits} hits with {room}",
        "a larger min_count or edge_threshold, more cells or fewer hits",
        free_memory,
    )


def _of(table: dict[int, int], num_places: int) -> int:
    return next(number for most, number in table.items() if num_places <= most)


def _blocks_per_row(voxdyn: VoxelDynamics) -> float:
    """Blocks that a row of C has, about."""
    return len(voxdyn.rows.columns) / voxdyn.num_cells / BLOCK + 1
