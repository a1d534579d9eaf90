"""The edge predictor in plain operations and in ONNX, beside the network itself."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_graph import SMALL_NETWORK, toy_graph

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.reconstruction.edge_classifier import edge_logits, export_edge_classifier
from hypertrack_jax.reconstruction.onnx_file import INPUTS

HELIX = replace(SMALL_NETWORK, node_features="cylindrical", edge_features="helix")
FILTERED = replace(HELIX, edge_features="helix+filter")
NETWORKS = {"published": SMALL_NETWORK, "helix": HELIX, "behind a filter": FILTERED}


def graph_of(tune):
    """The toy graph, with scores of a filter where they are seen."""
    graph = toy_graph()
    score = np.asarray(graph.edges.count, np.float32) / 5 - 2
    is_scored = tune.edge_features == "helix+filter"
    edges = graph.edges._replace(score=score) if is_scored else graph.edges
    return jax.tree.map(jnp.asarray, graph._replace(edges=edges))


def random_variables(tune):
    """Weights of order 1, no scale 1, and no variance negative."""
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        spread = 1 / np.sqrt(leaf.shape[0]) if path[-1].key == "kernel" else 0.3
        return jnp.asarray(rng.normal(0, spread, leaf.shape), jnp.float32)

    graph = graph_of(tune)
    shapes = jax.eval_shape(lambda: EdgePredictor(tune).init(jax.random.key(0), graph, train=False))
    return jax.tree_util.tree_map_with_path(drawn, dict(shapes))


def inputs_of(graph, tune, seed=0):
    """Inputs of the file, its edges in another order, and that order."""
    num_hits, is_real = int(graph.nodes.mask.sum()), np.flatnonzero(graph.edges.mask)
    order = np.random.default_rng(seed).permutation(is_real)
    index = np.stack([np.asarray(graph.senders)[order], np.asarray(graph.receivers)[order]])
    known = graph.edges.count if graph.edges.score is None else graph.edges.score
    known = np.asarray(known)[order, None].astype(np.float32)
    arrays = [np.asarray(graph.nodes.position)[:num_hits], index.astype(np.int32), known]
    return arrays[:2] if tune.edge_features == "none" else arrays, order


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_operations_give_the_logits_of_the_network(name):
    tune, graph = NETWORKS[name], graph_of(NETWORKS[name])
    variables = random_variables(tune)
    expected = jax.jit(EdgePredictor(tune).apply, static_argnums=2)(variables, graph, False).logit
    arrays, order = inputs_of(graph, tune)
    weights = variables["params"], variables["batch_stats"]
    found = jax.jit(edge_logits, static_argnums=0)(tune, *weights, *map(jnp.asarray, arrays))
    expected = np.asarray(expected)[order]
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_one_file_takes_events_of_any_size(name):
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tune = NETWORKS[name]
    weights = [random_variables(tune)[part] for part in ("params", "batch_stats")]
    session = runtime.InferenceSession(export_edge_classifier(tune, *weights))
    rng = np.random.default_rng(0)
    for num_hits, num_pairs in ((30, 90), (7, 12), (64, 500)):
        position = rng.normal(0, 300, (num_hits, 3)).astype(np.float32)
        half = rng.integers(0, num_hits, (2, num_pairs))
        index = np.concatenate([half, half[::-1]], axis=1)
        count = rng.integers(1, 50, (2 * num_pairs, 1)).astype(np.float32)
        arrays = [position, index, count][: 2 if tune is SMALL_NETWORK else 3]
        (found,) = session.run(["logit"], dict(zip(INPUTS, arrays, strict=False)))
        arrays[1] = index.astype(np.int32)
        expected = np.asarray(edge_logits(tune, *weights, *map(jnp.asarray, arrays)))
        # Both round, in another order: neither is nearer to double precision than the other.
        exact = in_double(tune, weights, arrays)
        allowed = 1e-4 * np.maximum(np.abs(exact), 1) + 4 * np.abs(expected - exact).max()
        assert (np.abs(found - exact) <= allowed).all()
        assert np.median(np.abs(found - expected)) < 1e-5 * np.abs(exact).max()
    assert [given.type for given in session.get_inputs()][1] == "tensor(int64)"


def in_double(tune, weights, arrays):
    # A feature of counts is in float32, as everywhere.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part) for part in weights]
        nodes, index, *features = arrays
        inputs = [nodes.astype(np.float64), index, *(part.astype(np.float64) for part in features)]
        return np.asarray(edge_logits(tune, *wide, *map(jnp.asarray, inputs)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("convolution", "gauge"), ("aggregation", "max"), ("edge_type", "symmetrized")],
)
def test_other_networks_are_refused(field, value):
    with pytest.raises(UserError, match=rf"with {field} '{value}' cannot be written as ONNX"):
        export_edge_classifier(replace(SMALL_NETWORK, **{field: value}), {}, {})


def test_missing_jax2onnx_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'hypertrack-jax\[onnx\]'"):
        export_edge_classifier(SMALL_NETWORK, {}, {})
