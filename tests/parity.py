"""Loads what the published PyTorch network computed, and its weights under our names."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.graph.event_graph import Edges, EventGraph, Nodes

FILE = Path(__file__).parents[2] / "shared" / "data" / "parity" / "tune5_small.npz"


def load_reference() -> dict[str, np.ndarray]:
    """All arrays of the reference; skips the test where the file is not."""
    if not FILE.is_file():
        pytest.skip(
            f"the published network's outputs are not there: ../shared/data/parity/{FILE.name}"
        )
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


def reference_graph(reference: dict[str, np.ndarray], dtype: str) -> EventGraph:
    """The reference event without padding, its positions of type `dtype`."""
    num_hits, num_edges = len(reference["x"]), len(reference["senders"])
    return EventGraph(
        nodes=Nodes(
            position=jnp.asarray(reference["x"], dtype),
            particle=jnp.asarray(reference["particle"], jnp.int32),
            weight=jnp.asarray(reference["hit_weight"], dtype),
            mask=jnp.ones(num_hits, bool),
        ),
        edges=Edges(
            count=jnp.zeros(num_edges, jnp.int32),
            label=jnp.asarray(reference["edge_label"] > 0.5),
            mask=jnp.ones(num_edges, bool),
        ),
        senders=jnp.asarray(reference["senders"], jnp.int32),
        receivers=jnp.asarray(reference["receivers"], jnp.int32),
        globals=None,
        n_node=jnp.asarray([num_hits], jnp.int32),
        n_edge=jnp.asarray([num_edges], jnp.int32),
    )


def reference_variables(reference: dict[str, np.ndarray], dtype: str) -> dict:
    """The weights and running statistics as variables of `EdgePredictor(NetworkTune())`.

    In the file an MLP's layer `k` has a Linear `k.0` with a weight [out, in] and a BatchNorm `k.2`.
    """

    def param(name):
        return jnp.asarray(reference[f"param/{name}"], dtype)

    def linear(name):
        return {"kernel": param(f"{name}.weight").T, "bias": param(f"{name}.bias")}

    def weights(layer):
        norm = {"scale": param(f"{layer}.2.weight"), "bias": param(f"{layer}.2.bias")}
        return {**linear(f"{layer}.0"), "norm": norm}

    def statistics(layer):
        mean, var = param(f"{layer}.2.running_mean"), param(f"{layer}.2.running_var")
        return {"norm": {"mean": mean, "var": var}}

    def network(of_layer):
        return {
            **{f"layers_{i}": _convolution(i, of_layer) for i in range(5)},
            "fusion": {f"layers_{k}": of_layer(f"mlp_fusion_edx.{k}") for k in range(2)},
            "edge_mlp": {f"layers_{k}": of_layer(f"mlp_2pt_edx.{k}") for k in range(2)},
        }

    params = network(weights)
    params["edge_mlp"] |= linear("mlp_2pt_edx.2")
    return {"params": params, "batch_stats": network(statistics)}


def reference_transformer(reference: dict[str, np.ndarray], dtype: str) -> dict:
    """The weights of the set transformer as parameters of `SetTransformer(NetworkTune())`."""
    names = {"query": "W_q", "key": "W_k", "value": "W_v", "output": "W_o"}
    names |= {"first": "MLP.0.0", "second": "MLP.1.0"}

    def param(name):
        return jnp.asarray(reference[f"param/transformer_ccx.{name}"], dtype)

    def linear(name):
        return {"kernel": param(f"{name}.weight").T, "bias": param(f"{name}.bias")}

    def norm(name):
        return {"scale": param(f"{name}.weight"), "bias": param(f"{name}.bias")}

    def block(prefix):
        linears = {ours: linear(f"{prefix}.{theirs}") for ours, theirs in names.items()}
        norms = {"attention_norm": norm(f"{prefix}.ln0"), "norm": norm(f"{prefix}.ln1")}
        return linears | norms

    return {
        "encoder_0": linear("MLP_E.0.0"),
        "encoder_1": linear("MLP_E.1"),
        "of_pivots": block("mab_D"),
        **{f"of_hits_{i}": block(f"sab_stack_D.{i}.0.mab") for i in range(4)},
        "membership_0": linear("MLP_m.0.0"),
        "membership_1": linear("MLP_m.1.0"),
        "membership_2": linear("MLP_m.2"),
    }


def _convolution(index: int, of_layer) -> dict:
    prefix = f"conv_gnn_edx.{index}"
    return {
        "edge_first": of_layer(f"{prefix}.nn.0"),
        "edge_second": of_layer(f"{prefix}.nn.1"),
        "latent": {f"layers_{k}": of_layer(f"{prefix}.nn_final.{k}") for k in range(2)},
    }


def num_elements(tree) -> int:
    """Number of numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
