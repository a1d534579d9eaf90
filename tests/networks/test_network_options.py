"""Choices of the tune other than the published ones, as whole networks, in float64."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import random_weights
from toy_graph import permute_hits, toy_graph

from hypertrack_jax import device
from hypertrack_jax.graph.event_graph import Bucket, EventGraph
from hypertrack_jax.networks.edge_predictor import EdgePrediction, EdgePredictor
from hypertrack_jax.tunes.tune import NetworkTune

SMALL = NetworkTune(
    node_features="cylindrical",
    num_layers=1,
    latent_dim=5,
    embedding_dim=4,
    edge_mlp_dims=(6,),
)
# What one layer did to the positions is seen by the next.
GAUGE = replace(SMALL, convolution="gauge", num_layers=2)
QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: there is more to compile here than to compute."""
OPTIONS = {
    "sum, symmetrized": replace(SMALL, aggregation="sum", edge_type="symmetrized"),
    "max, asymmetric": replace(SMALL, aggregation="max", edge_type="asymmetric"),
    "multi-aggregation": replace(SMALL, aggregation="multi-aggregation"),
    "set-transformer": replace(SMALL, aggregation="set-transformer"),
    "gauge": replace(GAUGE, node_features="cartesian"),
    "gauge, softmax, symmetrized, features": replace(
        GAUGE, aggregation="softmax", edge_type="symmetrized", edge_features="helix"
    ),
}


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Several blocks of edges in inference, the last one incomplete."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "CPU", device.CPU._replace(edges=100))
        yield


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Outputs(NamedTuple):
    """What one compiled program gives of a graph."""

    inferred: EdgePrediction
    trained: EdgePrediction
    statistics: Any
    """Running statistics after one training event."""
    gradient: Any
    """Of a function of all real logits, by the weights."""


class Case:
    """A network with random weights, as a compiled function of a graph."""

    def __init__(self, tune):
        self.tune, self.network = tune, EdgePredictor(tune)
        self.graph = wide(toy_graph())
        self.variables = random_weights(partial(init, self.network, self.graph))
        self.outputs = jax.jit(self._outputs, compiler_options=QUICK)

    def _outputs(self, graph) -> Outputs:
        def value(params):
            prediction, updates = self.network.apply(
                self.variables | {"params": params},
                graph,
                True,
                jnp.float64,
                mutable=["batch_stats"],
            )
            loss = jnp.where(graph.edges.mask, jnp.tanh(prediction.logit) ** 2, 0).sum()
            return loss, (prediction, updates["batch_stats"])

        gradient, (trained, statistics) = jax.grad(value, has_aux=True)(self.variables["params"])
        return Outputs(self.infer(graph), trained, statistics, gradient)

    def infer(self, graph) -> EdgePrediction:
        return self.network.apply(self.variables, graph, False, jnp.float64)


def init(network, graph):
    return network.init(jax.random.key(0), graph, False, jnp.float64)


@pytest.fixture(scope="module", params=OPTIONS)
def case(request, float64, small_blocks):
    return Case(OPTIONS[request.param])


def wide(graph: EventGraph) -> EventGraph:
    """The graph on the device, its positions in float64."""
    graph = jax.tree.map(jnp.asarray, graph)
    position = graph.nodes.position.astype(jnp.float64)
    return graph._replace(nodes=graph.nodes._replace(position=position))


def assert_trees_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), first, second)


def test_hits_in_another_order_give_the_same_in_that_order(case):
    num_real = int(case.graph.nodes.mask.sum())
    order = np.concatenate([np.random.default_rng(0).permutation(num_real), [num_real]])
    permuted, edge_order = permute_hits(case.graph, order)
    all_before, all_after = case.outputs(case.graph), case.outputs(permuted)
    for before, after in zip(all_before[:2], all_after[:2], strict=True):
        assert np.std(before.logit) > 1e-4
        assert_trees_close(before.embedding[order][:num_real], after.embedding[:num_real])
        assert_trees_close(before.logit[edge_order], after.logit)
    assert_trees_close(all_before.gradient, all_after.gradient)


def test_padding_changes_no_output_statistic_or_gradient(case):
    num_nodes, num_edges = len(case.graph.nodes.mask), len(case.graph.edges.mask)
    padded = wide(toy_graph(bucket=Bucket(num_nodes + 7, num_edges + 70)))
    tight, loose = case.outputs(case.graph), case.outputs(padded)
    for before, after in zip(tight[:2], loose[:2], strict=True):
        assert_trees_close(before.embedding[: num_nodes - 1], after.embedding[: num_nodes - 1])
        assert_trees_close(before.logit, after.logit[:num_edges])
    assert_trees_close(tight[2:], loose[2:])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(loose))


def test_every_parameter_is_of_use(case):
    for path, leaf in jax.tree_util.tree_leaves_with_path(case.outputs(case.graph).gradient):
        # A batch norm before a batch norm's Linear makes some biases idle, a softmax all keys'.
        if path[-1].key == "kernel":
            assert np.abs(leaf).max() > 1e-12, jax.tree_util.keystr(path)


def test_only_asymmetric_edges_know_their_direction(case):
    senders, receivers = (np.asarray(side) for side in (case.graph.senders, case.graph.receivers))
    back = np.lexsort((receivers, senders))
    np.testing.assert_array_equal(senders[back], receivers)
    for prediction in case.outputs(case.graph)[:2]:
        difference = np.abs(prediction.logit - prediction.logit[back])
        if case.tune.edge_type == "asymmetric":
            assert difference.max() > 1e-4
        else:
            assert difference.max() < 1e-9


def test_the_edge_mlp_looks_at_both_orders_of_the_hits():
    """The logits of `symmetrized` are the means of those of `asymmetric`, on the same weights."""
    both, one = (Case(replace(SMALL, edge_type=kind)) for kind in ("symmetrized", "asymmetric"))
    graph = both.graph
    back = np.lexsort((np.asarray(graph.receivers), np.asarray(graph.senders)))
    mean, of_one = (
        jax.jit(case.infer, compiler_options=QUICK)(graph).logit for case in (both, one)
    )
    assert np.abs(of_one - of_one[back]).max() > 1e-4
    np.testing.assert_allclose(mean, (of_one + of_one[back]) / 2, rtol=1e-10, atol=1e-12)


def test_an_asymmetric_edge_mlp_sees_the_receiver_first():
    case = Case(replace(SMALL, edge_type="asymmetric", edge_mlp_dims=()))
    found = jax.jit(case.infer, compiler_options=QUICK)(case.graph)
    edge_mlp, z = case.variables["params"]["edge_mlp"], found.embedding
    pairs = jnp.concatenate([z[case.graph.receivers], z[case.graph.senders]], axis=1)
    expected = pairs @ edge_mlp["kernel"][:, 0] + edge_mlp["bias"]
    np.testing.assert_allclose(found.logit, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["set-transformer", "gauge, softmax, symmetrized, features"])
def test_bfloat16_is_near_float32(name):
    variables = Case(OPTIONS[name]).variables
    network = EdgePredictor(OPTIONS[name])
    with jax.enable_x64(False):
        variables, graph = jax.tree.map(jnp.asarray, jax.device_get((variables, toy_graph())))

        @partial(jax.jit, static_argnums=0, compiler_options=QUICK)
        def infer(dtype):
            return network.apply(variables, graph, False, dtype)

        half, full = infer(jnp.bfloat16), infer(jnp.float32)
    assert half.logit.dtype == half.embedding.dtype == jnp.bfloat16
    distance = np.linalg.norm(half.embedding.astype(np.float32) - full.embedding)
    assert distance < 0.1 * np.linalg.norm(full.embedding)
