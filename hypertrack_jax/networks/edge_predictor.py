"""Device side: the GNN edge predictor, a graph in, one logit per edge out."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypertrack_jax.graph.edge_pairs import EdgePairs, edge_pairs, graph_of_pairs
from hypertrack_jax.graph.event_graph import EventGraph, Nodes
from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.networks.aggregation import SUMMED
from hypertrack_jax.networks.edge_conv import SuperEdgeConv
from hypertrack_jax.networks.edge_inputs import (
    EdgeInputs,
    PairInputs,
    are_many,
    in_blocks,
    map_real_blocks,
    moments_in_blocks,
    scan_blocks,
)
from hypertrack_jax.networks.features import (
    LENGTH_SCALE,
    NUM_CYLINDRICAL,
    NUM_EDGE,
    count_feature,
    cylindrical_features,
    features_of_coordinates,
    helix_coordinates,
    scaled,
    score_feature,
    without_direction,
)
from hypertrack_jax.networks.gauge_conv import GaugeEdgeConv
from hypertrack_jax.networks.kernels import pair_product, rows_at, wide_dtype
from hypertrack_jax.networks.mlp import MLP, apply_frozen
from hypertrack_jax.tunes.tune import NetworkTune


class EdgePrediction(NamedTuple):
    """Embeddings of the hits and logits of the edges of an event."""

    embedding: Float[Array, "hit feat"]
    """Fused latent z of every hit, input of the set transformer."""
    logit: Float[Array, " edge"]
    """Logit of the probability that the edge joins hits of one particle."""


class EdgePredictor(nn.Module):
    """Convolutions over the edges, their fusion and the edge MLP.

    Source: arXiv:2309.14113; layer by layer in `SuperEdgeConv`. The published network has 132,544 +
    24,759 + 2,941 parameters (layers, fusion, edge MLP).

    With the gauge convolution the fusion sees the latents and, of the positions, how far each layer
    moved a hit. Deviation: the published option gives it the positions themselves, with which the
    logits lose the invariance of the layers.
    """

    tune: NetworkTune

    def setup(self):
        """Declares the layers."""
        tune, is_gauge = self.tune, self.tune.convolution == "gauge"
        num_features = NUM_EDGE[tune.edge_features]
        convolution: Any = GaugeEdgeConv if is_gauge else SuperEdgeConv
        self.layers = [
            convolution(
                in_features=_num_inputs(tune) if i == 0 else tune.latent_dim,
                num_scalars=1 + num_features,
                features=tune.latent_dim,
                residual=i > 0,
                aggregation=tune.aggregation,
            )
            for i in range(tune.num_layers)
        ]
        num_latents = tune.num_layers * (tune.latent_dim + is_gauge)
        self.fusion = MLP((num_latents, tune.latent_dim, tune.embedding_dim))
        num_hits = 1 if tune.edge_type == "symmetric-dot" else 2
        num_edge_inputs = num_hits * tune.embedding_dim + num_features
        self.edge_mlp = MLP((num_edge_inputs, *tune.edge_mlp_dims, 1), plain_last=True)

    def __call__(
        self,
        graph: EventGraph,
        train: bool,
        dtype: DTypeLike = jnp.float32,
        pairs: EdgePairs | None = None,
    ) -> EdgePrediction:
        """Scores the edges of a padded graph.

        Args:
          graph: one event as `graph.event_graph.event_graph` makes it.
          train: normalise by the statistics of this event (True) or by the running ones.
          dtype: type of the arrays over hits and edges; statistics stay in float32 or wider.
          pairs: those of a symmetric graph, if what both directions of an edge share is to be
            computed once; for inference with networks that `takes_pairs`.

        Returns:
          Embeddings, 0 for padding; and logits, which for padding are meaningless but finite.

        Raises:
          ValueError: pairs are given for training, or to a network that does not take them.
        """
        if pairs is not None and (train or not takes_pairs(self.tune)):
            raise ValueError(
                "pairs of edges were given to a network that does not take them, or in training; "
                "leave them out."
            )
        position = scaled(graph.nodes.position, self.tune.length_scale)
        graph = graph._replace(nodes=graph.nodes._replace(position=position))
        nodes, mask = graph.nodes, graph.edges.mask
        degree = segment_sum(mask.astype(wide_dtype(dtype)), graph.receivers, nodes.mask.shape[0])
        if pairs is not None:
            graph = graph_of_pairs(graph, pairs)
        edges = self._edge_inputs(graph, degree, train, dtype, pairs is not None)

        latents_of = self._gauge_latents if self.tune.convolution == "gauge" else self._latents
        latents = latents_of(nodes, edges, degree, train, dtype)
        embedding = self.fusion(jnp.concatenate(latents, axis=1), nodes.mask, train)
        embedding = jnp.where(nodes.mask[:, None], embedding, 0)
        score = self._logit_in_training if train else self._logit_in_inference
        if train and are_many(edges):
            score = self._logit_in_training_by_blocks
        logit = score(embedding, edges)
        return EdgePrediction(embedding, logit[: len(mask)] if pairs is None else logit[pairs.pair])

    def _edge_inputs(self, graph: EventGraph, degree, train, dtype, are_pairs) -> EdgeInputs:
        """The edges as the layers need them, in inference filled up to whole blocks.

        Features are made block by block where no more than they should be in memory.
        """
        nodes, kind = graph.nodes, PairInputs if are_pairs else EdgeInputs
        level = _relative_degree(degree, nodes.mask)[:, None]
        coordinates = helix_coordinates(nodes.position)

        def scalars_of(edges: EdgeInputs):
            """The degree attribute a_ij = (d_j - d_i) / mean(d), then features."""
            senders, receivers = edges.senders, edges.receivers
            scalars = [level[senders] - level[receivers]]
            if self.tune.edge_features != "none":
                pair = features_of_coordinates(coordinates[receivers], coordinates[senders])
                scalars += [pair, edges.scalars]
            return jnp.concatenate([part.astype(dtype) for part in scalars], axis=1)

        known = count_feature(graph.edges.count)
        if self.tune.edge_features == "helix+filter":
            assert graph.edges.score is not None, "this network scores filtered graphs"
            known = score_feature(graph.edges.score)
        edges = kind(graph.senders, graph.receivers, graph.edges.mask, known)
        if train and not are_many(edges):
            return edges._replace(scalars=scalars_of(edges))
        blocks = in_blocks(edges, len(nodes.mask) - 1, train)
        scalars = map_real_blocks(scalars_of, blocks)
        senders, receivers, mask = (array.reshape(-1) for array in blocks[:3])
        return kind(senders, receivers, mask, scalars)

    def _latents(self, nodes: Nodes, edges: EdgeInputs, degree, train, dtype):
        """The latent of the hits after every layer."""
        if self.tune.node_features == "cartesian":
            x = nodes.position.astype(dtype)
        else:
            x = cylindrical_features(nodes.position).astype(dtype)
        latents = []
        for layer in self.layers:
            x = layer(x, nodes.mask, edges, degree, train)
            latents.append(x)
        return latents

    def _gauge_latents(self, nodes: Nodes, edges: EdgeInputs, degree, train, dtype):
        """The same, and the square of how far each layer moved them, in m^2 of `scaled`."""
        h = jnp.ones((len(nodes.mask), 1), dtype)
        if self.tune.node_features == "cylindrical":
            h = cylindrical_features(nodes.position).astype(dtype)
        position = nodes.position.astype(wide_dtype(dtype)) / LENGTH_SCALE
        latents = []
        for layer in self.layers:
            before = position
            h, position = layer(h, position, nodes.mask, edges, degree, train)
            way = jnp.square(position - before).sum(axis=1, keepdims=True)
            latents += [h, way.astype(dtype)]
        return latents

    def _logit_in_training(self, embedding, edges: EdgeInputs):
        kind = self.tune.edge_type
        inputs = _edge_mlp_inputs(kind, embedding, edges)
        # Both orders of the hits share the statistics of their norms.
        mask = jnp.tile(edges.mask, len(inputs) // len(edges.mask))
        return _edge_logit(kind, self.edge_mlp(inputs, mask, True))

    def _logit_in_training_by_blocks(self, embedding, edges: EdgeInputs):
        """The same, block by block: a pass for each norm and one for the logits."""
        kind, blocks = self.tune.edge_type, in_blocks(edges, len(embedding) - 1, train=True)

        def inputs_of(block: EdgeInputs):
            return _edge_mlp_inputs(kind, embedding, block)

        layers = self.edge_mlp.frozen_in_training(
            lambda hidden: moments_in_blocks(lambda block: hidden(inputs_of(block)), blocks)
        )

        def score_block(_, block: EdgeInputs):
            return None, _edge_logit(kind, apply_frozen(layers, inputs_of(block)))

        return scan_blocks(score_block, None, blocks)[1].reshape(-1)

    def _logit_in_inference(self, embedding, edges: EdgeInputs):
        layers, kind = self.edge_mlp.frozen(), self.tune.edge_type

        def score_block(block: EdgeInputs):
            return _edge_logit(kind, apply_frozen(layers, _edge_mlp_inputs(kind, embedding, block)))

        return map_real_blocks(score_block, in_blocks(edges, len(embedding) - 1))


def predict(
    tune: NetworkTune,
    params: Any,
    batch_stats: Any,
    graph: EventGraph,
    dtype: DTypeLike = jnp.float32,
    is_symmetric: bool = False,
) -> EdgePrediction:
    """The prediction of a trained network, by its running BatchNorm statistics.

    Args:
      tune: the network.
      params: its weights.
      batch_stats: its running statistics.
      graph: one event as `graph.event_graph.event_graph` makes it.
      dtype: type of the arrays over hits and edges.
      is_symmetric: every edge has one edge back with the same count, as in all graphs that
        Voxel-Dynamics makes. What both directions share is then computed once. For another graph
        the result would have no meaning.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    pairs = edge_pairs(graph) if is_symmetric and takes_pairs(tune) else None
    prediction = EdgePredictor(tune).apply(variables, graph, train=False, dtype=dtype, pairs=pairs)
    return cast(EdgePrediction, prediction)


def takes_pairs(tune: NetworkTune) -> bool:
    """Whether messages are summed, and both directions of an edge have one logit."""
    has_sums = tune.convolution == "super" and tune.aggregation in SUMMED
    return has_sums and tune.edge_type != "asymmetric"


def _num_inputs(tune: NetworkTune) -> int:
    """Width of the first layer's input for a hit."""
    if tune.node_features == "cylindrical":
        return NUM_CYLINDRICAL
    return 1 if tune.convolution == "gauge" else 3


def _relative_degree(degree, node_mask):
    """d_i / mean(d), the mean over real hits."""
    num_real = jnp.maximum(node_mask.sum(), 1).astype(degree.dtype)
    mean = jnp.where(node_mask, degree, 0).sum() / num_real
    return degree / jnp.maximum(mean, 1e-6)


def _edge_mlp_inputs(kind: str, embedding, edges: EdgeInputs):
    """Inputs of the edge MLP: the hits, then the features that both directions share.

    A row per edge, or with `symmetrized` two: first all edges, then all with their hits exchanged.
    """
    if kind == "symmetric-dot":
        rows = [[pair_product(embedding, edges.senders, edges.receivers)]]
    else:
        z_i = rows_at(embedding, edges.receivers)
        z_j = rows_at(embedding, edges.senders, sorted_ids=False)
        rows = {"symmetrized": [[z_i, z_j], [z_j, z_i]], "asymmetric": [[z_i, z_j]]}[kind]
    features = without_direction(edges.scalars[:, 1:])
    return jnp.concatenate([jnp.concatenate([*hits, features], axis=1) for hits in rows], axis=0)


def _edge_logit(kind: str, output: Float[Array, "row 1"]) -> Float[Array, " edge"]:
    """The logit of every edge from what the edge MLP gives of `_edge_mlp_inputs`."""
    if kind != "symmetrized":
        return output[:, 0]
    return output.reshape(2, -1).mean(axis=0)
