"""Host side: ONNX, our own network and double precision compared: logits, and edges cut.

Neither is exact: both round to 24 bits, in different orders. So each is compared with the same
network in double precision, and ONNX is right when it is as near to that as our own network is.
"""

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrack_jax.events.event import Event
from hypertrack_jax.graph.event_graph import hit_graph
from hypertrack_jax.model.parameters import EDGE
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.reconstruction.candidates import CandidateEdges, predict_edges
from hypertrack_jax.reconstruction.edge_classifier import edge_logits, export_edge_classifier
from hypertrack_jax.reconstruction.filter_classifier import (
    DROPPED,
    export_filter,
    filter_logits,
    node_features_of,
)
from hypertrack_jax.reconstruction.onnx_file import INPUTS
from hypertrack_jax.reconstruction.reconstructor import Reconstructor

FIELDS = (
    *("event", "hits", "stage", "edges", "largest logit"),
    *("ONNX from double: median, 99.9 %, largest", "network from double", "ONNX from network"),
    *("probability", "on the other side of the cut"),
)
"""The last three compare ONNX with the network in float32: logits relative to their size or 1,
probabilities, and edges that one keeps and the other drops."""
HEADING = f"| {' | '.join(FIELDS)} |\n|{'---|' * len(FIELDS)}"


def sessions(model: Reconstructor) -> dict[str, Any]:
    """The stages of a model as they run in onnxruntime, by name."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    weights = model.params[EDGE], model.batch_stats
    files = {"edge predictor": export_edge_classifier(model.tune.network, *weights)}
    if model.edge_filter is not None:
        files = {"filter": export_filter(model.edge_filter), **files}
    return {name: onnxruntime.InferenceSession(file, options) for name, file in files.items()}


def agreement(model: Reconstructor, of_stages: dict[str, Any], event: Event) -> Iterator[str]:
    """The rest of a line for each stage, see `FIELDS`."""
    tune, of_model = model.tune, (model.voxdyn, event.position, model.tune.voxdyn.min_count)
    edges = predict_edges(*of_model)
    if model.edge_filter is not None:
        cells = None if tune.edge_filter.cells == "none" else event.cells
        arrays = _inputs(node_features_of(event.position, cells), edges, edges.counts)
        kept = predict_edges(*of_model, model.edge_filter, cells)
        product = np.full(len(edges.senders), np.nan)
        product[_places(edges, kept)] = kept.score
        cut = float(model.edge_filter.thresholds[-1])
        double = _in_double(filter_logits, model.edge_filter, arrays=arrays)
        yield _line("filter", of_stages["filter"], arrays, product, double, cut)
        edges = kept
    known = edges.counts if edges.score is None else edges.score
    arrays = _inputs(event.position, edges, known)
    weights, graph = (model.params[EDGE], model.batch_stats), hit_graph(event.position, *edges)
    found = jax.jit(predict, static_argnums=0)(tune.network, *weights, graph)
    product = np.asarray(found.logit)[: len(edges.senders)].astype(np.float64)
    double = _in_double(functools.partial(edge_logits, tune.network), *weights, arrays=arrays)
    threshold = tune.cluster.edge_threshold
    cut = float(np.log(threshold / (1 - threshold)))
    yield _line("edge predictor", of_stages["edge predictor"], arrays, product, double, cut)


def _inputs(nodes: np.ndarray, edges: CandidateEdges, known: Any) -> list[np.ndarray]:
    index = np.stack([edges.senders, edges.receivers]).astype(np.int64)
    return [nodes, index, np.asarray(known, np.float32)[:, None]]


def _places(edges: CandidateEdges, kept: CandidateEdges) -> np.ndarray:
    """Where the edges kept are among all edges."""
    number, wanted = (part.receivers * 2**32 + part.senders for part in map(_wide, (edges, kept)))
    order = np.argsort(number)
    return order[np.searchsorted(number, wanted, sorter=order)]


def _wide(edges: CandidateEdges) -> CandidateEdges:
    return edges._replace(
        senders=edges.senders.astype(np.int64), receivers=edges.receivers.astype(np.int64)
    )


def _in_double(function: Any, *weights: Any, arrays: list[np.ndarray]) -> np.ndarray:
    """The same operations in double precision."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (weights, arrays))
        (nodes, _, features), index = tree[1], arrays[1]
        wide = jax.tree.map(jnp.asarray, (*tree[0], nodes, index, features))
        return np.asarray(jax.jit(function)(*wide))


def _line(
    stage: str,
    session: Any,
    arrays: list[np.ndarray],
    product: np.ndarray,
    double: np.ndarray,
    cut: float,
) -> str:
    """A line of `FIELDS`; `product`, our own logit, is nan for edges that our filter drops."""
    given = dict(zip(INPUTS[: len(session.get_inputs())], arrays, strict=False))
    (found,) = session.run(["logit"], given)
    # Where rounding moves an edge across the cut, the sizes of the logits are not compared.
    is_far = (found >= cut) != (double >= cut)
    is_other = (found >= cut) != (product >= cut)
    both = (found > DROPPED / 2) & (double > DROPPED / 2) & np.isfinite(product) & ~is_far
    found, product, double = found[both].astype(np.float64), product[both], double[both]
    relative = np.abs(found - product) / np.maximum(np.abs(product), 1)
    chance = np.abs(1 / (1 + np.exp(-found)) - 1 / (1 + np.exp(-product)))
    return (
        f"{stage} | {len(is_far)} | {np.abs(product).max():.0f} | {_spread(found - double)} | "
        f"{_spread(product - double)} | {_spread(relative)} | {chance.max():.0e} | "
        f"{np.count_nonzero(is_other)} of {len(is_other)} |"
    )


def _spread(difference: np.ndarray) -> str:
    quantiles = np.quantile(np.abs(difference), (0.5, 0.999, 1))
    return ", ".join(f"{value:.0e}" for value in quantiles)
