"""Host side: measured graphs with their settings, the input of tables and figures."""

from typing import NamedTuple

from hypertrack_jax.evaluation.graph_quality import GraphQuality


class GraphPoint(NamedTuple):
    """A measured graph and its settings."""

    node2node: str
    """Topology of the true edges that C counted."""
    judged: str
    """Topology of the true edges that the graph is compared with."""
    num_cells: int
    """V."""
    num_events: int
    """Events counted in C."""
    pileup: float
    """Mean number of collisions: 200 times rfactor."""
    event_id: int
    """The event; C was not counted from it."""
    quality: GraphQuality


class CentroidPoint(NamedTuple):
    """How well centroids serve an event that they were not fitted to.

    C was counted from the same events for all numbers of centroid hits.
    """

    num_centroid_hits: int
    """Hits that the centroids were fitted to."""
    distance2: float | None
    """Mean squared distance of the event's particle hits from their nearest centroid, in mm^2."""
    graph: GraphPoint
