"""Both sides: the arrays of a model by their names, and the values that they begin with."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from hypertrack_jax.clustering.transformer import init_clusterer
from hypertrack_jax.graph.event_graph import hit_graph
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.networks.flow import NUM_CONDITIONS, init_flow
from hypertrack_jax.tunes.tune import Tune

EDGE = "edge"
"""Name of the edge predictor among the parameters of a model."""
CLUSTER = "cluster"
"""Name of the clusterer among them."""
FLOW = "flow"
"""Name of the experimental flow among them; it is there where its loss has a weight."""
GNN_PHASE, FULL_PHASE = 1, 2
"""Phase 1 of the training trains the edge predictor alone, phase 2 both."""


class Parameters(NamedTuple):
    """The arrays of a model."""

    params: dict[str, Any]
    """Weights of the edge predictor (`edge`), of the clusterer (`cluster`) and, where its loss has
    a weight, of the experimental flow (`flow`), always float32."""
    batch_stats: Any
    """Running statistics of the BatchNorms of the edge predictor."""


def init_parameters(tune: Tune, key: PRNGKeyArray) -> Parameters:
    """Fresh weights and fresh running statistics."""
    no_edges = np.zeros(0, np.int32)
    score = np.zeros(0, np.float32) if tune.edge_filter.filter != "none" else None
    graph = hit_graph(np.zeros((1, 3), np.float32), *3 * (no_edges,), score=score)
    graph = jax.tree.map(jnp.asarray, graph)
    edge_key, cluster_key = jax.random.split(key)
    variables = EdgePredictor(tune.network).init(edge_key, graph, train=False)
    params = {EDGE: variables["params"], CLUSTER: init_clusterer(tune.network, cluster_key)}
    if tune.loss.flow > 0:
        # Not by a split in three, which would change the other weights.
        flow_key = jax.random.fold_in(key, 2)
        params[FLOW] = init_flow(tune.network, NUM_CONDITIONS, flow_key)
    return Parameters(params, variables["batch_stats"])


class Fitted(NamedTuple):
    """Arrays in which saved ones stand where name and shape are the same."""

    origin: str
    """Where those come from, such as `step 7 of pu2`."""
    arrays: Any
    loaded: list[str]
    """Names of the saved arrays taken, such as `params/edge/fusion/layers_0/bias`."""
    skipped: list[str]
    """Names of saved ones that have no place, or one of another shape."""
    kept: list[str]
    """Names of those that were not saved, or in another shape, and are as they were."""


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree; names are the same for tuples, NamedTuples and dicts."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def fitted(
    origin: str, wanted: dict[str, Any], saved: Iterable[str], found: dict[str, Any]
) -> Fitted:
    """The wanted arrays by name, with those in their place that were found among the saved."""
    return Fitted(
        origin,
        nested(wanted | found),
        loaded=sorted(found),
        skipped=sorted(set(saved) - found.keys()),
        kept=sorted(wanted.keys() - found.keys()),
    )


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The tree of dicts whose leaves have these names."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *groups, last = name.split("/")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = leaf
    return tree
