"""The border: hits in, tracks out."""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from hypertrack_jax.clustering.baselines import cut
from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.graph.event_graph import EventGraph, hit_graph
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.training.checkpoint import Checkpoints
from hypertrack_jax.training.step import init_state
from hypertrack_jax.tunes.tune import NetworkTune, Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics, predict_edges
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path


class Reconstructor(NamedTuple):
    """A trained model; call it with hits to get tracks. Holds no state, so threads may share it."""

    tune: Tune
    voxdyn: VoxelDynamics
    params: Any
    """Weights of the edge predictor."""
    batch_stats: Any
    """Running BatchNorm statistics of the edge predictor."""

    def __call__(self, position: Float32[np.ndarray, "hit 3"]) -> Tracks:
        """Reconstructs one event.

        Args:
          position: hit positions in mm.

        Returns:
          The tracks. No hits, or hits that Voxel-Dynamics joins to no other, give no tracks.

        Raises:
          ValueError: a coordinate is not finite.
        """
        if not np.isfinite(position).all():
            raise ValueError(
                "a hit position is not finite; remove such hits before reconstruction."
            )
        seconds, started = {}, time.perf_counter()
        edges = predict_edges(self.voxdyn, position, self.tune.voxdyn.min_count)
        graph = hit_graph(position, *edges)
        seconds["VD"], started = time.perf_counter() - started, time.perf_counter()
        graph = jax.device_put(graph)
        probability = jax.block_until_ready(
            edge_probability(self.tune.network, self.params, self.batch_stats, graph)
        )
        seconds["GNN"], started = time.perf_counter() - started, time.perf_counter()
        label = cut(
            probability,
            graph.senders,
            graph.receivers,
            graph.edges.mask,
            len(graph.nodes.mask),
            self.tune.cluster.edge_threshold,
            self.tune.cluster.min_hits,
        )
        hit_label = np.asarray(label)[: len(position)]
        seconds["CC"] = time.perf_counter() - started
        return Tracks(
            hit_label,
            edges.senders,
            edges.receivers,
            np.asarray(probability)[: len(edges.senders)],
            seconds,
        )


def load_reconstructor(models: Path, tag: str, step: int = -1) -> Reconstructor:
    """Loads a checkpoint and the Voxel-Dynamics file that its Tune names.

    Args:
      models: directory of the Voxel-Dynamics files and of one directory per tag.
      tag: the model.
      step: the checkpoint; -1 for the latest.

    Returns:
      A callable from hits to tracks.

    Raises:
      FileNotFoundError: no such tag, step or file.
      ValueError: a file is damaged, or does not belong to the model.
    """
    with Checkpoints(models / tag) as checkpoints:
        saved = checkpoints.describe(step)
        like = jax.eval_shape(partial(init_state, saved.tune), jax.random.key(0))
        state = checkpoints.restore(saved.step, like)
    wanted = saved.tune.voxdyn
    path = voxdyn_path(models, wanted.node2node, wanted.ncell)
    voxdyn = load_voxdyn(path, wanted.node2node, wanted.ncell, wanted.min_count)
    return Reconstructor(saved.tune, voxdyn, state.params, state.batch_stats)


@partial(jax.jit, static_argnums=0)
def edge_probability(
    tune: NetworkTune, params: Any, batch_stats: Any, graph: EventGraph
) -> jax.Array:
    """Probability of every edge of a padded graph, by running BatchNorm statistics."""
    logit = predict(tune, params, batch_stats, graph).logit
    return jax.nn.sigmoid(logit.astype(jnp.float32))
