"""The published network and its losses, on its own weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import (
    load_reference,
    num_elements,
    reference_graph,
    reference_transformer,
    reference_variables,
)

from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.networks.set_transformer import init_set_transformer, membership_logit
from hypertrack_jax.training.losses import contrastive_edge_loss, focal_edge_loss
from hypertrack_jax.tunes.tune_5 import TUNE

NETWORK = EdgePredictor(TUNE.network)


@pytest.fixture(scope="module")
def reference():
    return load_reference()


@pytest.fixture(scope="module", params=["float64", "float32"])
def outputs(reference, request):
    """Type, and (training, inference) predictions in it."""
    dtype = request.param
    with jax.enable_x64(dtype == "float64"):
        graph = reference_graph(reference, dtype)
        variables = reference_variables(reference, dtype)

        @jax.jit
        def apply(variables, graph):
            trained, _ = NETWORK.apply(
                variables, graph, True, jnp.dtype(dtype), mutable=["batch_stats"]
            )
            return trained, NETWORK.apply(variables, graph, False, jnp.dtype(dtype))

        return dtype, jax.device_get(apply(variables, graph))


@pytest.mark.parametrize(("place", "mode"), [(0, "train"), (1, "eval")])
def test_outputs_are_the_published_ones(reference, outputs, place, mode):
    dtype, predictions = outputs
    for found, name in (
        (predictions[place].embedding, f"out/z_{mode}"),
        (predictions[place].logit, f"out/edge_logit_{mode}"),
    ):
        assert found.dtype == dtype
        expected = reference[name]
        if dtype == "float64":
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
        else:
            assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_parameters_are_as_many_and_named_as_ours(reference):
    published = reference_variables(reference, "float32")
    graph = reference_graph(reference, "float32")
    ours = jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), graph, train=False))
    assert jax.tree.map(jnp.shape, dict(ours)) == jax.tree.map(jnp.shape, published)
    parts = ours["params"]
    layers = sum(num_elements(parts[f"layers_{i}"]) for i in range(5))
    assert layers == 132_544
    assert num_elements(parts["fusion"]) == 24_759
    assert num_elements(parts["edge_mlp"]) == 2_941
    assert num_elements(parts) == 132_544 + 24_759 + 2_941


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_membership_is_the_published_one(reference, dtype):
    mask, expected = reference["token_mask"], reference["out/cluster_logit"]
    with jax.enable_x64(dtype == "float64"):
        token = np.concatenate([reference["out/z_eval"], reference["x"]], axis=1)
        pivot_tokens = jnp.asarray(token[reference["pivot_hit"]], dtype)
        apply = jax.jit(membership_logit, static_argnums=(0, 6))
        found = apply(
            TUNE.network,
            reference_transformer(reference, dtype),
            jnp.asarray(token[reference["token_hit"]], dtype),
            jnp.asarray(mask),
            pivot_tokens,
            jnp.ones(pivot_tokens.shape[:2], bool),
            jnp.dtype(dtype),
        )
    assert found.dtype == dtype
    assert not mask.all()
    found, expected = np.asarray(found)[mask], expected[mask]
    if dtype == "float64":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    else:
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_the_set_transformer_has_parameters_as_many_and_named_as_published(reference):
    published = reference_transformer(reference, "float32")
    ours = jax.eval_shape(lambda: init_set_transformer(TUNE.network, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, published)


def test_losses_are_the_published_ones(reference):
    with jax.enable_x64(True):
        graph = reference_graph(reference, "float64")
        logit = jnp.asarray(reference["out/edge_logit_train"], "float64")
        focal = focal_edge_loss(logit, graph.edges.label, graph.edges.mask, 1.0)
        contrastive = contrastive_edge_loss(
            logit,
            graph.senders,
            graph.receivers,
            graph.edges.mask,
            graph.nodes.particle,
            graph.nodes.weight,
            jax.random.key(0),
            temperature=0.3,
            max_particles=300,
        )
    assert focal.dtype == contrastive.dtype == np.float64
    assert float(focal) == pytest.approx(
        float(reference["out/loss_edge_focal_gamma1_balanced"]), abs=1e-8
    )
    assert float(contrastive) == pytest.approx(
        float(reference["out/loss_edge_contrastive_tau0p3"]), abs=1e-8
    )
