"""Device side: the GNN edge predictor, a graph in, one logit per edge out."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.networks.edge_conv import EdgeInputs, SuperEdgeConv, in_blocks
from hypertrack_jax.networks.features import (
    NUM_COUNT,
    NUM_CYLINDRICAL,
    NUM_HELIX,
    count_feature,
    cylindrical_features,
    helix_features,
)
from hypertrack_jax.networks.mlp import MLP, apply_frozen, wide_dtype
from hypertrack_jax.tunes.tune import NetworkTune


class EdgePrediction(NamedTuple):
    """What the GNN says of an event."""

    embedding: Float[Array, "hit feat"]
    """Fused latent z of every hit, input of the set transformer."""
    logit: Float[Array, " edge"]
    """Logit of the probability that the edge joins hits of one particle."""


class EdgePredictor(nn.Module):
    """Five SuperEdgeConv layers, their fusion and the symmetric-dot edge MLP.

    Source: arXiv:2309.14113; layer by layer in `SuperEdgeConv`. With the published inputs it has
    132,544 + 24,759 + 2,941 parameters (layers, fusion, edge MLP).
    """

    tune: NetworkTune

    def setup(self):
        """Declares the layers."""
        tune = self.tune
        num_inputs = 3 if tune.node_features == "cartesian" else NUM_CYLINDRICAL
        num_features = 0 if tune.edge_features == "none" else NUM_HELIX + NUM_COUNT
        self.layers = [
            SuperEdgeConv(
                in_features=num_inputs if i == 0 else tune.latent_dim,
                num_scalars=1 + num_features,
                features=tune.latent_dim,
                residual=i > 0,
            )
            for i in range(tune.num_layers)
        ]
        self.fusion = MLP((tune.num_layers * tune.latent_dim, tune.latent_dim, tune.embedding_dim))
        self.edge_mlp = MLP(
            (tune.embedding_dim + num_features, *tune.edge_mlp_dims, 1), plain_last=True
        )

    def __call__(
        self, graph: EventGraph, train: bool, dtype: DTypeLike = jnp.float32
    ) -> EdgePrediction:
        """Scores the edges of a padded graph.

        Args:
          graph: one event as `graph.event_graph.event_graph` makes it.
          train: normalise by the statistics of this event (True) or by the running ones.
          dtype: type of the arrays over hits and edges; statistics stay in float32 or wider.

        Returns:
          Embeddings and logits; those of padding are meaningless but finite.
        """
        nodes, mask = graph.nodes, graph.edges.mask
        degree = segment_sum(mask.astype(wide_dtype(dtype)), graph.receivers, nodes.mask.shape[0])
        attribute = _degree_attribute(degree, nodes.mask, graph).astype(dtype)
        directed, symmetric = self._pair_features(graph)
        scalars = jnp.concatenate([attribute, directed.astype(dtype)], axis=1)
        edges = EdgeInputs(graph.senders, graph.receivers, mask, scalars)

        x = self._node_inputs(nodes.position).astype(dtype)
        latents = []
        for layer in self.layers:
            x = layer(x, nodes.mask, edges, degree, train)
            latents.append(x)
        embedding = self.fusion(jnp.concatenate(latents, axis=1), nodes.mask, train)
        score = self._logit_in_training if train else self._logit_in_inference
        return EdgePrediction(
            embedding, score(embedding, edges._replace(scalars=symmetric.astype(dtype)))
        )

    def _logit_in_training(self, embedding, edges: EdgeInputs):
        return self.edge_mlp(_edge_mlp_inputs(embedding, edges), edges.mask, True)[:, 0]

    def _logit_in_inference(self, embedding, edges: EdgeInputs):
        layers = self.edge_mlp.frozen()

        def of_block(block: EdgeInputs):
            return apply_frozen(layers, _edge_mlp_inputs(embedding, block))[:, 0]

        logit = jax.lax.map(of_block, in_blocks(edges, len(embedding) - 1))
        return logit.reshape(-1)[: len(edges.mask)]

    def _pair_features(self, graph: EventGraph):
        """Features of the edges for the layers, and symmetric ones for the edge MLP."""
        if self.tune.edge_features == "none":
            nothing = jnp.zeros((len(graph.edges.mask), 0))
            return nothing, nothing
        position = graph.nodes.position
        pair = helix_features(position[graph.receivers], position[graph.senders])
        count = count_feature(graph.edges.count).astype(position.dtype)
        return (
            jnp.concatenate([pair.directed, count], axis=1),
            jnp.concatenate([pair.symmetric, count], axis=1),
        )

    def _node_inputs(self, position):
        if self.tune.node_features == "cartesian":
            return position
        return cylindrical_features(position)


def predict(
    tune: NetworkTune,
    params: Any,
    batch_stats: Any,
    graph: EventGraph,
    dtype: DTypeLike = jnp.float32,
) -> EdgePrediction:
    """The prediction of a trained network, by its running BatchNorm statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    return cast(
        EdgePrediction, EdgePredictor(tune).apply(variables, graph, train=False, dtype=dtype)
    )


def _degree_attribute(degree, node_mask, graph):
    """a_ij = (d_j - d_i) / mean(d) over real hits; j the sender, i the receiver."""
    num_real = jnp.maximum(node_mask.sum(), 1).astype(degree.dtype)
    mean = jnp.where(node_mask, degree, 0).sum() / num_real
    difference = degree[graph.senders] - degree[graph.receivers]
    return (difference / jnp.maximum(mean, 1e-6))[:, None]


def _edge_mlp_inputs(embedding, edges: EdgeInputs):
    """z_i z_j, followed by the symmetric features, which stand where the layers had theirs."""
    product = embedding[edges.receivers] * embedding[edges.senders]
    return jnp.concatenate([product, edges.scalars], axis=1)
