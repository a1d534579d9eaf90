"""Host side: a measured graph and how it came about, of which tables and figures are made."""

from typing import NamedTuple

from hypertrack_jax.evaluation.graph_quality import GraphQuality


class GraphPoint(NamedTuple):
    """A measured graph and how it came about: what the figures and tables are made of."""

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
    """The event, which is not one of those counted."""
    quality: GraphQuality


class CentroidPoint(NamedTuple):
    """How well centroids fitted to some number of hits serve an event that they were not fitted to.

    C was counted with these centroids from the same events, however many hits they are fitted to.
    """

    num_centroid_hits: int
    """Hits that the centroids were fitted to."""
    distance2: float | None
    """Mean squared distance of the event's particle hits from their nearest centroid, in mm^2."""
    graph: GraphPoint
