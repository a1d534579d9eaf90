"""The border: hits in, tracks out."""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from hypertrack_jax.clustering.clusterer import HitClusters, find_clusters
from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.clustering.transformer import KeptEdges, kept_edges
from hypertrack_jax.graph.event_graph import EventGraph, hit_graph
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.training.checkpoint import Checkpoints
from hypertrack_jax.training.event_loss import CLUSTER, EDGE, GNN_PHASE
from hypertrack_jax.training.step import init_state
from hypertrack_jax.training.weights import (
    load_weights,
    require_same_counts,
    shipped_names,
    shipped_path,
)
from hypertrack_jax.tunes.tune import NetworkTune, Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics, predict_edges
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

_LOG = logging.getLogger(__name__)


class Scores(NamedTuple):
    """What the edge predictor says of an event."""

    embedding: Float[Array, "hit feat"]
    """z of every hit."""
    probability: Float32[Array, " edge"]
    """Probability of every edge to join hits of one particle."""


class Reconstructor(NamedTuple):
    """A trained model; call it with hits to get tracks. Holds no state, so threads may share it."""

    tune: Tune
    voxdyn: VoxelDynamics
    params: dict[str, Any]
    """Weights of the edge predictor (`edge`) and of the clusterer (`cluster`)."""
    batch_stats: Any
    """Running BatchNorm statistics of the edge predictor."""
    seed: int = 0
    """Decides the random choices of the clusterer: same seed, same tracks."""

    def __call__(self, position: Float32[np.ndarray, "hit 3"]) -> Tracks:
        """Reconstructs one event.

        Args:
          position: hit positions in mm.

        Returns:
          The tracks. No hits, or hits that Voxel-Dynamics joins to no other, give no tracks.

        Raises:
          ValueError: a coordinate is not finite.
        """
        seconds, started = {}, time.perf_counter()
        graph = jax.device_put(self.graph(position))
        seconds["VD"], started = time.perf_counter() - started, time.perf_counter()
        scores = jax.block_until_ready(self.score(graph))
        seconds["GNN"], started = time.perf_counter() - started, time.perf_counter()
        kept = jax.block_until_ready(self.keep(graph, scores))
        seconds["CC"], started = time.perf_counter() - started, time.perf_counter()
        clusters = self.cluster(graph, scores, kept)
        seconds["cluster"] = time.perf_counter() - started
        num_edges = int(graph.n_edge[0])
        senders, receivers, probability = (
            np.asarray(array)[:num_edges]
            for array in (graph.senders, graph.receivers, scores.probability)
        )
        return Tracks(*clusters, senders, receivers, probability, seconds)

    def graph(self, position: Float32[np.ndarray, "hit 3"]) -> EventGraph:
        """The padded candidate graph of some hits; NumPy arrays."""
        if not np.isfinite(position).all():
            raise ValueError(
                "a hit position is not finite; remove such hits before reconstruction."
            )
        edges = predict_edges(self.voxdyn, position, self.tune.voxdyn.min_count)
        return hit_graph(position, *edges)

    def score(self, graph: EventGraph) -> Scores:
        """What the edge predictor says of a graph on the device."""
        return scored_graph(self.tune.network, self.params[EDGE], self.batch_stats, graph)

    def keep(self, graph: EventGraph, scores: Scores) -> KeptEdges:
        """Components of the edges above the threshold."""
        return kept_edges(graph, scores.probability, self.tune.cluster.edge_threshold)

    def cluster(self, graph: EventGraph, scores: Scores, kept: KeptEdges) -> HitClusters:
        """Clusters of the hits of a graph on the device."""
        key = jax.random.key(self.seed)
        return find_clusters(self.tune, self.params[CLUSTER], graph, *scores, kept, key)


def load_reconstructor(models: Path, tag: str, step: int = -1) -> Reconstructor:
    """Loads a model and the Voxel-Dynamics file that its Tune names.

    Args:
      models: directory of the Voxel-Dynamics files and of one directory of checkpoints per tag.
      tag: the model: a directory of checkpoints or else the name of one that comes with the
        package, see `training.weights.shipped_names`.
      step: the checkpoint; -1 for the latest.

    Returns:
      A callable from hits to tracks. Where phase 2 has not begun, its tune says `cut` for
      `transformer`, and a warning tells so.

    Raises:
      FileNotFoundError: no such tag, step or file.
      ValueError: a file is damaged, or does not belong to the model.
    """
    if tag in shipped_names() and not (models / tag).is_dir():
        weights = load_weights(shipped_path(tag))
        voxdyn, path = _load_voxdyn(models, weights.tune)
        require_same_counts(weights, voxdyn, path)
        return Reconstructor(weights.tune, voxdyn, weights.params, weights.batch_stats)
    with Checkpoints(models / tag) as checkpoints:
        saved = checkpoints.describe(step)
        like = jax.eval_shape(partial(init_state, saved.tune), jax.random.key(0))
        state = checkpoints.restore(saved.step, like)
    voxdyn, _ = _load_voxdyn(models, saved.tune)
    tune = saved.tune
    if tune.cluster.cluster == "transformer" and int(state.phase) == GNN_PHASE:
        _LOG.warning("the transformer of %s has not been trained; tracks are made by cut", tag)
        tune = replace(tune, cluster=replace(tune.cluster, cluster="cut"))
    return Reconstructor(tune, voxdyn, state.params, state.batch_stats)


def _load_voxdyn(models: Path, tune: Tune) -> tuple[VoxelDynamics, Path]:
    wanted = tune.voxdyn
    path = voxdyn_path(models, wanted.node2node, wanted.ncell)
    return load_voxdyn(path, wanted.node2node, wanted.ncell, wanted.min_count), path


@partial(jax.jit, static_argnums=0)
def scored_graph(tune: NetworkTune, params: Any, batch_stats: Any, graph: EventGraph) -> Scores:
    """Embeddings and edge probabilities by running BatchNorm statistics."""
    prediction = predict(tune, params, batch_stats, graph)
    return Scores(prediction.embedding, jax.nn.sigmoid(prediction.logit.astype(jnp.float32)))
