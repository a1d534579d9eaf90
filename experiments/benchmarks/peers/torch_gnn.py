"""Host side: the edge predictor in PyTorch and PyTorch Geometric, layer by layer as published.

Every message uses its whole input, [x_i, x_j - x_i, x_j x_i, |x_j - x_i|, x_j . x_i, scalars], and
every norm is a layer of its own; nothing is split, folded or blocked. With our weights it gives our
logits, so it does the same work. torch is imported only when it is used; both packages come with
the extra `bench`.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int64

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.networks.features import (
    LENGTH_SCALE,
    count_feature,
    cylindrical_features,
    helix_features,
    without_direction,
)
from hypertrack_jax.tunes.tune import NetworkTune

KNOWN = {
    "convolution": ("super",),
    "aggregation": ("mean",),
    "edge_type": ("symmetric-dot",),
    "edge_features": ("none", "helix"),
    "length_scale": (LENGTH_SCALE,),
}
"""Choices of `NetworkTune` that the peer knows."""


class GraphInputs(NamedTuple):
    """The real hits and edges of a graph, as the network takes them."""

    x: Float32[np.ndarray, "hit in_feat"]
    """Input features of each hit."""
    edge_index: Int64[np.ndarray, "2 edge"]
    """Sender and receiver of each edge."""
    scalars: Float32[np.ndarray, "edge scalar"]
    """Degree attribute and edge features, for the layers."""
    symmetric: Float32[np.ndarray, "edge feature"]
    """Edge features for the edge MLP."""


class TorchGnn(NamedTuple):
    """A network in inference and the graph that it scores."""

    network: Any
    """The torch module."""
    tensors: tuple[Any, ...]
    """`GraphInputs` as tensors."""

    def __call__(self) -> Float32[np.ndarray, " edge"]:
        """The logit of every edge."""
        with _torch().inference_mode():
            return self.network(*self.tensors).numpy()


def torch_gnn(tune: NetworkTune, params: Any, batch_stats: Any, graph: EventGraph) -> TorchGnn:
    """The peer of `predict`, with its weights, ready to score a graph.

    Args:
      tune: a network of SuperEdgeConv layers with the published mean and symmetric edge MLP, for
        a detector of TrackML's size and edges without a filter's logit.
      params: weights of the edge predictor.
      batch_stats: its running statistics.
      graph: one event.

    Returns:
      A callable with prepared inputs. Features of hits and edges are among these, so its time is
      that of the layers, the fusion and the edge MLP.

    Raises:
      ImportError: torch or torch_geometric is not installed.
      UserError: the tune asks for another kind of network.
    """
    for name, known in KNOWN.items():
        if getattr(tune, name) not in known:
            raise UserError(
                f"the PyTorch peer is written for the {name} {' or '.join(map(str, known))}, not "
                f"for {getattr(tune, name)}; leave torch out of --peers, or take another tune."
            )
    torch = _torch()
    network = _network(torch, tune, params, batch_stats).eval()
    inputs = graph_inputs(tune, graph)
    return TorchGnn(network, tuple(map(torch.from_numpy, inputs)))


def graph_inputs(tune: NetworkTune, graph: EventGraph) -> GraphInputs:
    """The arrays of a padded graph without its padding."""
    is_hit, is_edge = np.asarray(graph.nodes.mask), np.asarray(graph.edges.mask)
    position = np.asarray(graph.nodes.position)[is_hit]
    senders, receivers = (
        np.asarray(ends)[is_edge].astype(np.int64) for ends in (graph.senders, graph.receivers)
    )
    degree = np.bincount(receivers, minlength=len(position)).astype(np.float32)
    scalars = ((degree[senders] - degree[receivers]) / degree.mean())[:, None]
    symmetric = np.zeros((len(senders), 0), np.float32)
    if tune.edge_features == "helix":
        pair = helix_features(jnp.asarray(position[receivers]), jnp.asarray(position[senders]))
        count = np.asarray(count_feature(jnp.asarray(graph.edges.count)[is_edge]))
        scalars = np.concatenate([scalars, np.asarray(pair), count], axis=1)
        symmetric = np.concatenate([np.asarray(without_direction(pair)), count], axis=1)
    is_cartesian = tune.node_features == "cartesian"
    x = position if is_cartesian else np.array(cylindrical_features(jnp.asarray(position)))
    return GraphInputs(x, np.stack([senders, receivers]), scalars, symmetric)


def backward_pass(gnn: TorchGnn, label: Bool[np.ndarray, " edge"]) -> float:
    """A forward and a backward pass in training mode, for the gradient of binary cross entropy.

    It changes the running statistics, and with them the logits of `gnn` in inference.

    Args:
      gnn: the network and its graph.
      label: True for the true edges, in the order of the graph.

    Returns:
      The loss.
    """
    torch = _torch()
    gnn.network.train()
    gnn.network.zero_grad(set_to_none=True)
    target = torch.from_numpy(label.astype(np.float32))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(gnn.network(*gnn.tensors), target)
    loss.backward()
    return loss.item()


def _network(torch: Any, tune: NetworkTune, params: Mapping, batch_stats: Mapping) -> Any:
    MessagePassing = importlib.import_module("torch_geometric.nn").MessagePassing
    blocks = _Blocks(torch, params, batch_stats)

    class SuperEdgeConv(MessagePassing):
        def __init__(self, name: str, is_residual: bool):
            super().__init__(aggr="mean")
            self.message_mlp = blocks.mlp(name, ["edge_first", "edge_second"])
            self.latent_mlp = blocks.mlp(f"{name}/latent")
            self.is_residual = is_residual

        def forward(self, x, edge_index, scalars):
            return self.propagate(edge_index, x=x, scalars=scalars)

        def message(self, x_i, x_j, scalars):
            difference, product = x_j - x_i, x_j * x_i
            distance = difference.norm(dim=1, keepdim=True)
            dot = product.sum(dim=1, keepdim=True)
            inputs = [x_i, difference, product, distance, dot, scalars]
            return self.message_mlp(torch.cat(inputs, dim=1))

        def update(self, aggregated, x):
            y = self.latent_mlp(torch.cat([x, aggregated], dim=1))
            return y + x if self.is_residual else y

    class EdgePredictor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                SuperEdgeConv(f"layers_{i}", is_residual=i > 0) for i in range(tune.num_layers)
            )
            self.fusion = blocks.mlp("fusion")
            self.edge_mlp = blocks.mlp("edge_mlp")

        def forward(self, x, edge_index, scalars, symmetric):
            latents = []
            for layer in self.layers:
                x = layer(x, edge_index, scalars)
                latents.append(x)
            z = self.fusion(torch.cat(latents, dim=1))
            product = z[edge_index[1]] * z[edge_index[0]]
            return self.edge_mlp(torch.cat([product, symmetric], dim=1))[:, 0]

    return EdgePredictor()


class _Blocks(NamedTuple):
    """Makes torch layers of our weights, by their paths."""

    torch: Any
    params: Mapping
    batch_stats: Mapping

    def mlp(self, path: str, names: list[str] | None = None) -> Any:
        """Linear, SiLU and BatchNorm of each layer, and a plain Linear where one ends the MLP."""
        values = _at(self.params, path)
        names = names or sorted(name for name in values if name.startswith("layers_"))
        layers = []
        for name in names:
            layers += [self.linear(values[name]), self.torch.nn.SiLU()]
            layers.append(self.norm(values[name]["norm"], f"{path}/{name}/norm"))
        if "kernel" in values:
            layers.append(self.linear(values))
        return self.torch.nn.Sequential(*layers)

    def linear(self, values: Mapping) -> Any:
        kernel = values["kernel"]
        layer = self.torch.nn.Linear(*kernel.shape)
        self._fill(layer, weight=np.asarray(kernel).T, bias=values["bias"])
        return layer

    def norm(self, values: Mapping, path: str) -> Any:
        statistics = _at(self.batch_stats, path)
        layer = self.torch.nn.BatchNorm1d(len(values["scale"]))
        self._fill(layer, weight=values["scale"], bias=values["bias"])
        self._fill(layer, running_mean=statistics["mean"], running_var=statistics["var"])
        return layer

    def _fill(self, layer: Any, **arrays: Any) -> None:
        with self.torch.no_grad():
            for name, array in arrays.items():
                # A copy, since torch asks for writable arrays.
                getattr(layer, name).copy_(self.torch.from_numpy(np.array(array, np.float32)))


def _at(tree: Mapping, path: str) -> Mapping:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _torch() -> Any:
    try:
        # By name: type checks run where this extra is not installed.
        importlib.import_module("torch_geometric")
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingPackageError(
            "the PyTorch peer needs torch and torch_geometric, which are not installed; "
            "pip install '.[bench]', or leave torch out of --peers."
        ) from error
