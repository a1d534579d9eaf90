"""The PyTorch peer computes what our edge predictor computes, edge by edge."""

import re
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from benchmarks.peers.torch_gnn import backward_pass, torch_gnn
from toy_graph import SMALL_NETWORK, toy_graph

from hypertrack_jax.errors import UserError
from hypertrack_jax.graph.event_graph import Bucket
from hypertrack_jax.networks.edge_predictor import EdgePredictor, predict
from hypertrack_jax.tunes.tune import NetworkTune


def trained_variables(tune: NetworkTune, graph):
    """Random weights, norms and statistics: a fresh network's norms would hide their order."""
    network = EdgePredictor(tune)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), graph, train=True))
    rng = np.random.default_rng(0)

    def draw(path, like):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, like.shape).astype(np.float32)
        scale = 1 / np.sqrt(like.shape[0]) if name == "kernel" else 0.3
        return (scale * rng.normal(size=like.shape)).astype(np.float32)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, variables))


@pytest.mark.parametrize("features", [("cartesian", "none"), ("cylindrical", "helix")])
def test_logits_are_ours(features):
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    tune = replace(SMALL_NETWORK, node_features=features[0], edge_features=features[1])
    graph = toy_graph(num_particles=6, bucket=Bucket(128, 1024))
    # In mm and with random norms the values would grow from layer to layer without bounds.
    nodes = graph.nodes._replace(position=graph.nodes.position / 300)
    graph = jax.device_put(graph._replace(nodes=nodes))
    variables = trained_variables(tune, graph)
    ours = predict(tune, variables["params"], variables["batch_stats"], graph).logit
    theirs = torch_gnn(tune, variables["params"], variables["batch_stats"], graph)()
    real = np.asarray(ours)[np.asarray(graph.edges.mask)]
    assert len(theirs) == len(real) > 100
    assert real.std() > 0.05
    np.testing.assert_allclose(theirs, real, rtol=1e-3, atol=1e-3 * real.std())


def test_training_goes_down_the_loss():
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    graph = jax.device_put(toy_graph(num_particles=6))
    variables = trained_variables(SMALL_NETWORK, graph)
    gnn = torch_gnn(SMALL_NETWORK, variables["params"], variables["batch_stats"], graph)
    label = np.asarray(graph.edges.label)
    optimizer = torch.optim.SGD(gnn.network.parameters(), lr=0.1)
    before = backward_pass(gnn, label)
    for _ in range(5):
        optimizer.step()
        after = backward_pass(gnn, label)
    assert after < before


@pytest.mark.parametrize(
    "choice",
    [{"aggregation": "max"}, {"edge_features": "helix+filter"}, {"length_scale": 500.0}],
)
def test_another_network_is_refused(choice):
    ((name, value),) = choice.items()
    told = rf"for the {name} .*, not for {re.escape(str(value))}; leave torch out"
    with pytest.raises(UserError, match=told):
        torch_gnn(replace(SMALL_NETWORK, **choice), {}, {}, toy_graph())


def test_missing_torch_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[bench\]', or leave torch out"):
        torch_gnn(SMALL_NETWORK, {}, {}, toy_graph())
