"""In 16 bits nothing is summed over hits or edges in 16 bits, neither forwards nor backwards."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_graph import SMALL_NETWORK, toy_graph

from hypertrack_jax import device
from hypertrack_jax.graph.event_graph import Bucket
from hypertrack_jax.networks.edge_inputs import EdgeInputs, in_blocks, scan_blocks
from hypertrack_jax.networks.edge_predictor import EdgePredictor

HELIX = replace(SMALL_NETWORK, node_features="cylindrical", edge_features="helix")
NETWORKS = {
    "helix": HELIX,
    "symmetrized, max": replace(HELIX, edge_type="symmetrized", aggregation="max"),
    "gauge": replace(HELIX, convolution="gauge"),
    "set-transformer": replace(HELIX, aggregation="set-transformer"),
    "multi-aggregation": replace(HELIX, aggregation="multi-aggregation"),
    "softmax": replace(HELIX, aggregation="softmax"),
}
WIDEST = 100
"""More than the width of any layer here, and less than there are hits or edges."""


def equations(jaxpr):
    """The equations of a jaxpr and of all jaxprs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def num_addends(equation):
    """How many numbers the equation adds to one at most; 0 for one that adds nothing."""
    kind, parameters = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.invars]
    if kind == "reduce_sum":
        return np.prod([shapes[0][axis] for axis in parameters["axes"]])
    if kind == "dot_general":
        return np.prod([shapes[0][axis] for axis in parameters["dimension_numbers"][0][0]])
    return np.prod(shapes[1][:1]) if kind == "scatter-add" else 0


def sums_in_half_precision(tune):
    """Sums of many numbers in bfloat16 in the gradient of a network."""
    graph = jax.tree.map(jnp.asarray, toy_graph(bucket=Bucket(256, 1024)))
    assert min(len(graph.nodes.mask), len(graph.senders)) > WIDEST > 3 * SMALL_NETWORK.latent_dim
    network = EdgePredictor(tune)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), graph, True, jnp.float32))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def loss(params):
        prediction, _ = network.apply(
            variables | {"params": params}, graph, True, jnp.bfloat16, mutable=["batch_stats"]
        )
        return jnp.square(prediction.logit.astype(jnp.float32)).sum()

    found = list(equations(jax.make_jaxpr(jax.grad(loss))(variables["params"]).jaxpr))
    sums = [equation for equation in found if num_addends(equation) > WIDEST]
    assert len(sums) > 20
    return [str(sum_) for sum_ in sums if sum_.outvars[0].aval.dtype == jnp.bfloat16]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_sum_over_hits_or_edges_is_in_half_precision(name):
    assert sums_in_half_precision(NETWORKS[name]) == []


def test_no_sum_over_a_block_of_edges_is_in_half_precision(monkeypatch):
    sizes = device.CPU._replace(whole_edges=0, training_edges=2 * WIDEST)
    monkeypatch.setattr(device, "CPU", sizes)
    assert sums_in_half_precision(HELIX) == []


def test_gradients_add_up_over_blocks_in_float32(monkeypatch):
    monkeypatch.setattr(device, "CPU", device.CPU._replace(training_edges=1))
    number = 1000
    index = jnp.zeros(number, jnp.int32)
    edges = EdgeInputs(index, index, jnp.ones(number, bool), jnp.zeros((number, 1)))

    def total(x):
        blocks = in_blocks(edges, 0, train=True)
        assert len(blocks.mask) == number
        return scan_blocks(lambda _, block: (None, x.astype(jnp.float32)), None, blocks)[1].sum()

    # In bfloat16 it would end at 256.
    gradient = jax.jit(jax.grad(total))(jnp.ones((), jnp.bfloat16))
    assert float(gradient) == pytest.approx(number, rel=2**-8)
