"""Both sides: the edge predictor as ACTS's edge classifiers take it, in ONNX.

The network is written once more here, in plain operations on all edges at once and without padding:
loops over blocks of edges have lengths that ONNX's sizes do not tell. Tests hold it to
`EdgePredictor`. ACTS applies the sigmoid itself (Plugins/Gnn/src/OnnxEdgeClassifier.cpp).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypertrack_jax.errors import UserError
from hypertrack_jax.graph.segment import add_to_segments
from hypertrack_jax.networks.features import (
    count_feature,
    cylindrical_features,
    features_of_coordinates,
    helix_coordinates,
    scaled,
    score_feature,
    without_direction,
)
from hypertrack_jax.reconstruction.onnx_file import onnx_file
from hypertrack_jax.tunes.tune import NetworkTune

EPSILON = 1e-5
"""Of the BatchNorms."""


def edge_logits(
    tune: NetworkTune,
    params: Any,
    batch_stats: Any,
    node_features: Float[Array, "hit 3"],
    edge_index: Int[Array, "2 edge"],
    edge_features: Float[Array, "edge 1"] | None = None,
) -> Float[Array, " edge"]:
    """Logits of edges.

    Args:
      tune: the network, of which `require_exportable` is true.
      params: weights of the edge predictor.
      batch_stats: its running statistics.
      node_features: x, y, z of each hit in mm.
      edge_index: sender and receiver of each edge; both directions are there, in any order.
      edge_features: for networks with features of the helix: entry of C for the cells of each
        edge's hits; or the filter's logit, with `helix+filter`.

    Returns:
      Logit of the probability that the edge joins hits of one particle.
    """
    senders, receivers = edge_index[0], edge_index[1]
    num_hits = node_features.shape[0]
    node_features = scaled(node_features, tune.length_scale)

    def summed(of_edges):
        total = jnp.zeros((num_hits, of_edges.shape[1]), of_edges.dtype)
        return add_to_segments(total, of_edges, receivers, sorted_ids=False)

    degree = summed(jnp.ones_like(node_features[:, :1])[senders])[:, 0]
    level = degree / jnp.maximum(degree.mean(), 1e-6)
    scalars = [(level[senders] - level[receivers])[:, None]]
    if tune.edge_features != "none":
        assert edge_features is not None, "such networks have a third input"
        coordinates = helix_coordinates(node_features)
        scalars.append(features_of_coordinates(coordinates[receivers], coordinates[senders]))
        known = edge_features[:, 0]
        is_score = tune.edge_features == "helix+filter"
        scalars.append(score_feature(known) if is_score else count_feature(known.astype(jnp.int32)))
    scalars = jnp.concatenate(scalars, axis=1)

    x = node_features
    if tune.node_features == "cylindrical":
        x = cylindrical_features(node_features)
    latents = []
    for number in range(tune.num_layers):
        layer, stats = params[f"layers_{number}"], batch_stats[f"layers_{number}"]
        x_i, x_j = x[receivers], x[senders]
        step, product = x_j - x_i, x_j * x_i
        distance = jnp.sqrt((step * step).sum(axis=1, keepdims=True))
        similarity = product.sum(axis=1, keepdims=True)
        inputs = [x_i, step, product, distance, similarity, scalars]
        message = jnp.concatenate(inputs, axis=1)
        for name in ("edge_first", "edge_second"):
            message = _normed(layer[name], stats[name], message)
        mean = summed(message) / jnp.maximum(degree, 1)[:, None]
        y = _mlp(layer["latent"], stats["latent"], jnp.concatenate([x, mean], axis=1))
        x = y + x if number else y
        latents.append(x)
    z = _mlp(params["fusion"], batch_stats["fusion"], jnp.concatenate(latents, axis=1))
    seen = jnp.concatenate([z[receivers] * z[senders], without_direction(scalars[:, 1:])], axis=1)
    return _linear(params["edge_mlp"], _mlp(params["edge_mlp"], batch_stats["edge_mlp"], seen))[
        :, 0
    ]


def export_edge_classifier(tune: NetworkTune, params: Any, batch_stats: Any) -> bytes:
    """The edge predictor as an ONNX file for any numbers of hits and edges.

    Its inputs are those of `edge_logits`, `edge_index` of 64 bits; `edge_features` is an input of
    networks with features of the helix alone. Its output is `logit`.

    Raises:
      MissingPackageError: jax2onnx is not installed.
      UserError: the network has a layer that this form does not have.
    """
    require_exportable(tune)
    params, batch_stats = jax.tree.map(np.asarray, (params, batch_stats))
    return onnx_file(
        lambda *arrays: edge_logits(tune, params, batch_stats, *arrays),
        3,
        0 if tune.edge_features == "none" else 1,
    )


def require_exportable(tune: NetworkTune) -> None:
    """Raises `UserError` for a network that `edge_logits` does not have."""
    for name, value in (
        ("convolution", "super"),
        ("aggregation", "mean"),
        ("edge_type", "symmetric-dot"),
    ):
        if getattr(tune, name) != value:
            raise UserError(
                f"a network with {name} {getattr(tune, name)!r} cannot be written as ONNX; choose "
                f"a model with {value!r}."
            )


def _linear(weights: Any, x):
    return x @ weights["kernel"] + weights["bias"][None, :]


def _normed(weights: Any, stats: Any, x):
    """Linear, SiLU, BatchNorm."""
    norm, moments = weights["norm"], stats["norm"]
    scale = norm["scale"] * jax.lax.rsqrt(moments["var"] + EPSILON)
    shift = norm["bias"] - moments["mean"] * scale
    return jax.nn.silu(_linear(weights, x)) * scale[None, :] + shift[None, :]


def _mlp(weights: Any, stats: Any, x):
    """All such layers, in order."""
    for number in range(sum(name.startswith("layers_") for name in weights)):
        x = _normed(weights[f"layers_{number}"], stats[f"layers_{number}"], x)
    return x
