"""Symmetries of the GNN, in float64; padding that changes nothing; half precision."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_graph import SMALL_NETWORK, permute_hits, toy_graph

from hypertrack_jax import device
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.graph.edge_pairs import edge_pairs
from hypertrack_jax.graph.event_graph import Bucket, EventGraph, hit_graph
from hypertrack_jax.networks import edge_inputs
from hypertrack_jax.networks.edge_predictor import EdgePrediction, EdgePredictor, predict
from hypertrack_jax.networks.kernels import ROW_BLOCK

HELIX = replace(SMALL_NETWORK, node_features="cylindrical", edge_features="helix")


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Several blocks of edges in inference, the last one incomplete."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "CPU", device.CPU._replace(edges=300))
        yield


@pytest.fixture(scope="module", autouse=True)
def float64():
    """The symmetries are exact; in float64 a test can ask for them to 1e-9."""
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
        self.network = EdgePredictor(tune)
        self.graph = wide(toy_graph())
        self.variables = randomised(init(self.network, self.graph, jnp.float64))
        self.outputs = jax.jit(self._outputs)

    def _outputs(self, graph) -> Outputs:
        target = jnp.where(graph.edges.label, 1.0, -0.5)

        def value(params):
            variables = self.variables | {"params": params}
            prediction, updates = self.network.apply(
                variables, graph, True, jnp.float64, mutable=["batch_stats"]
            )
            distance = jnp.tanh(prediction.logit - target) ** 2
            loss = jnp.where(graph.edges.mask, distance, 0).sum()
            return loss, (prediction, updates["batch_stats"])

        gradient, (trained, statistics) = jax.grad(value, has_aux=True)(self.variables["params"])
        inferred = self.network.apply(self.variables, graph, False, jnp.float64)
        return Outputs(inferred, trained, statistics, gradient)


@pytest.fixture(scope="module")
def case(float64, small_blocks):
    """With all inputs that there are; `test_parity` looks at the published ones."""
    return Case(HELIX)


def init(network, graph, dtype):
    return jax.jit(lambda graph: network.init(jax.random.key(0), graph, True, dtype))(graph)


def wide(graph: EventGraph) -> EventGraph:
    """The graph on the device, its positions in float64."""
    graph = jax.tree.map(jnp.asarray, graph)
    position = graph.nodes.position.astype(jnp.float64)
    return graph._replace(nodes=graph.nodes._replace(position=position))


def randomised(variables):
    """Variables in float64, no bias 0, no scale 1, no two channels alike."""
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64) + rng.uniform(0.05, 0.3, leaf.shape),
        dict(variables),
    )


def assert_trees_close(first, second, atol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=atol), first, second)


def order_of_hits(graph):
    """A random order of the hits that leaves padding in its place."""
    num_real = int(graph.nodes.mask.sum())
    rest = np.arange(num_real, len(graph.nodes.mask))
    return np.concatenate([np.random.default_rng(0).permutation(num_real), rest])


def test_hits_in_another_order_give_the_same_in_that_order(case):
    order = order_of_hits(case.graph)
    permuted, edge_order = permute_hits(case.graph, order)
    assert not np.array_equal(order, np.arange(len(order)))
    all_before, all_after = case.outputs(case.graph), case.outputs(permuted)
    real = np.asarray(permuted.nodes.mask)
    for before, after in zip(all_before[:2], all_after[:2], strict=True):
        assert_trees_close(before.embedding[order][real], after.embedding[real])
        assert_trees_close(before.logit[edge_order], after.logit)
    assert_trees_close(all_before.gradient, all_after.gradient)


def test_both_directions_of_an_edge_have_one_logit(case):
    senders, receivers = np.asarray(case.graph.senders), np.asarray(case.graph.receivers)
    # Edges are sorted by (receiver, sender); so the others of all pairs are, by (sender, receiver).
    back = np.lexsort((receivers, senders))
    np.testing.assert_array_equal(senders[back], receivers)
    assert np.any(back != np.arange(len(back)))
    for prediction in case.outputs(case.graph)[:2]:
        assert np.std(prediction.logit) > 1e-3
        assert_trees_close(prediction.logit, prediction.logit[back])


def test_padding_changes_no_output_statistic_or_gradient(case):
    num_nodes, num_edges = len(case.graph.nodes.mask), len(case.graph.edges.mask)
    assert num_edges < 4 * ROW_BLOCK
    padded = wide(toy_graph(bucket=Bucket(num_nodes + 37, 4 * ROW_BLOCK)))
    num_hits = num_nodes - 1
    tight, loose = case.outputs(case.graph), case.outputs(padded)
    for before, after in zip(tight[:2], loose[:2], strict=True):
        assert_trees_close(before.embedding[:num_hits], after.embedding[:num_hits])
        assert_trees_close(before.logit, after.logit[:num_edges])
        assert np.all(np.isfinite(after.logit))
        assert np.all(np.isfinite(after.embedding))
    assert_trees_close(tight.statistics, loose.statistics)
    assert_trees_close(tight.gradient, loose.gradient)
    largest = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tight.gradient)]
    assert np.median(largest) > 1e-3


def test_training_moves_every_running_statistic(case):
    before, after = case.variables["batch_stats"], case.outputs(case.graph).statistics
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved))


def test_no_truth_reaches_the_logits(case):
    nodes, edges = case.graph.nodes, case.graph.edges
    blind = case.graph._replace(
        nodes=nodes._replace(particle=jnp.full_like(nodes.particle, NOISE)),
        edges=edges._replace(label=~edges.label),
    )
    found, expected = case.outputs(blind), case.outputs(case.graph)
    np.testing.assert_array_equal(found.inferred.logit, expected.inferred.logit)
    np.testing.assert_array_equal(found.trained.logit, expected.trained.logit)


@pytest.mark.parametrize("num_loops", [0, 1, 6])
def test_a_graph_of_self_loops_alone_has_finite_outputs_and_gradients(case, num_loops):
    position = np.asarray(case.graph.nodes.position[:6])
    loops = np.arange(num_loops, dtype=np.int32)
    bucket = Bucket(*(len(mask) for mask in (case.graph.nodes.mask, case.graph.edges.mask)))
    graph = wide(hit_graph(position, loops, loops, np.ones(num_loops, np.int32), bucket=bucket))
    for leaf in jax.tree.leaves(case.outputs(graph)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
    "tune", [HELIX, replace(HELIX, aggregation="sum", edge_type="symmetrized")]
)
def test_training_by_blocks_equals_training_at_once(tune, monkeypatch):
    case = Case(tune)
    size = len(case.graph.edges.mask)
    block = ROW_BLOCK // 2
    assert 2 * block < size
    # Several blocks with edges, the last of them incomplete, and many of padding.
    graph = wide(toy_graph(bucket=Bucket(len(case.graph.nodes.mask), 32 * ROW_BLOCK)))

    def outcome():
        compiled = jax.jit(lambda graph: case._outputs(graph)).lower(graph).compile()
        return compiled(graph), compiled.memory_analysis().temp_size_in_bytes

    at_once, memory_at_once = outcome()
    sizes = device.CPU._replace(whole_edges=0, training_edges=block)
    monkeypatch.setattr(device, "CPU", sizes)
    by_blocks, memory_by_blocks = outcome()
    assert_trees_close(at_once.trained.embedding, by_blocks.trained.embedding)
    # The logits of padding have no meaning.
    assert_trees_close(at_once.trained.logit[:size], by_blocks.trained.logit[:size])
    assert_trees_close(at_once.statistics, by_blocks.statistics)
    assert_trees_close(at_once.gradient, by_blocks.gradient)
    assert np.any(at_once.trained.logit[:size] != by_blocks.trained.logit[:size])
    assert memory_by_blocks < memory_at_once / 2


def test_a_block_of_an_accelerator_holds_more_edges(monkeypatch):
    number = 2 * device.CPU.training_edges + 1
    index = np.zeros(number, np.int32)
    arrays = index, index, np.ones(number, bool), np.zeros((number, 1), np.float32)

    def num_blocks(kind, train, of=arrays):
        return len(edge_inputs.in_blocks(kind(*of), 0, train).mask)

    edges, pairs = edge_inputs.EdgeInputs, edge_inputs.PairInputs
    assert num_blocks(edges, train=True) == 3
    assert num_blocks(pairs, train=False) == -(-number // (device.CPU.edges // 2))
    # Of few edges, the padding is in blocks that are passed over.
    few = tuple(array[: device.CPU.edges // 2] for array in arrays)
    assert num_blocks(edges, train=False, of=few) == device.CPU.least_blocks > 1
    assert num_blocks(edges, train=True, of=few) == 1
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    assert num_blocks(edges, train=True) == num_blocks(pairs, train=False) == 1
    assert num_blocks(edges, train=False, of=few) == 1


def star(num_leaves):
    """One hit that all the others send to, and it to them."""
    rng = np.random.default_rng(0)
    position = rng.normal(0, 100, (num_leaves + 1, 3)).astype(np.float32)
    leaves, hub = np.arange(1, num_leaves + 1), np.zeros(num_leaves, int)
    senders, receivers = np.concatenate([leaves, hub]), np.concatenate([hub, leaves])
    return hit_graph(position, senders, receivers, np.ones(2 * num_leaves, np.int32))


def test_bfloat16_is_near_float32():
    # In bfloat16 a sum of ones ends at 256, so that the degree of the star's hub, and the mean of
    # the messages to it, are right only if they are summed in float32.
    network = EdgePredictor(HELIX)
    with jax.enable_x64(False):
        graph = jax.tree.map(jnp.asarray, star(600))
        variables = init(network, graph, jnp.float32)

        @partial(jax.jit, static_argnums=0)
        def infer(dtype):
            return network.apply(variables, graph, False, dtype)

        half, full = infer(jnp.bfloat16), infer(jnp.float32)
    assert half.logit.dtype == half.embedding.dtype == jnp.bfloat16
    assert np.all(np.isfinite(half.logit.astype(np.float32)))
    embedding = np.asarray(half.embedding[0], np.float32)
    assert np.linalg.norm(embedding - full.embedding[0]) < 0.03 * np.linalg.norm(full.embedding[0])


PAIRED = {
    "helix": HELIX,
    "no features": replace(HELIX, edge_features="none"),
    "sum, symmetrized": replace(HELIX, aggregation="sum", edge_type="symmetrized"),
}


@pytest.fixture(scope="module", params=PAIRED)
def both(request, float64, small_blocks):
    """What a network gives of a graph edge by edge, and what it gives pair by pair."""
    tune = PAIRED[request.param]
    variables = randomised(init(EdgePredictor(tune), wide(toy_graph()), jnp.float64))
    weights = variables["params"], variables["batch_stats"]

    def predictions(graph):
        given = tune, *weights, graph, jnp.float64
        return predict(*given), predict(*given, is_symmetric=True)

    return jax.jit(predictions)


def padded_toy_graph():
    """A toy graph with padding, and the senders of a receiver in no order."""
    full = toy_graph()
    edges = np.random.default_rng(2).permutation(len(full.senders))
    edges = edges[np.argsort(full.receivers[edges], kind="stable")]
    ends = full.senders[edges], full.receivers[edges]
    assert np.any(ends[0] == ends[1])
    bucket = Bucket(len(full.nodes.mask) + 20, len(full.senders) + 100)
    position = np.asarray(full.nodes.position[:-1])
    return wide(hit_graph(position, *ends, np.ones(len(edges), np.int32), bucket=bucket))


def test_a_symmetric_graph_has_the_same_prediction_pair_by_pair(both):
    graph = padded_toy_graph()
    expected, found = both(graph)
    hits, edges = graph.nodes.mask, graph.edges.mask
    assert np.std(expected.logit[edges]) > 1e-3
    assert_trees_close(found.embedding[hits], expected.embedding[hits])
    assert_trees_close(found.logit[edges], expected.logit[edges])
    assert np.any(found.logit[edges] != expected.logit[edges])
    assert np.all(np.isfinite(found.logit)) and np.all(np.isfinite(found.embedding))


@pytest.mark.parametrize("changes", [{}, {"aggregation": "max"}, {"edge_type": "asymmetric"}])
def test_pairs_are_refused_where_they_are_of_no_use(changes):
    graph = wide(toy_graph())
    network = EdgePredictor(replace(HELIX, **changes))
    with pytest.raises(ValueError, match="leave them out"):
        network.apply({}, graph, not changes, jnp.float64, edge_pairs(graph))
