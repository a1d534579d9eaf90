"""Device side: the experimental normalising flow, the density of z given a particle (section 6).

A chain of masked autoregressive blocks (Papamakarios, Pavlakou and Murray, arXiv:1705.07057), each
a MADE (Germain et al., arXiv:1502.03509) that is told the condition: in a block, channel k is
shifted and scaled by what a network makes of the channels before it. The Jacobian is triangular, so
its determinant is a product; the order of the channels is turned round from block to block.

Deviation: no BatchNorm between the blocks, which arXiv:1705.07057 has. The density of a hit would
depend on the other hits of its batch, and z has been through a BatchNorm already.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from hypertrack_jax.networks.mlp import XAVIER_NORMAL
from hypertrack_jax.tunes.tune import NetworkTune

NUM_CONDITIONS = 7
"""Conditions of the density of a hit: vertex, momentum and charge of its particle."""
MAX_LOG_SCALE = 4.0
"""Largest logarithm of what a block scales a channel by, so that no scale overflows or vanishes."""

Params = dict[str, dict[str, dict[str, Array]]]
"""By block and layer, a kernel and, but for the condition's, a bias."""


def init_flow(tune: NetworkTune, num_conditions: int, key: PRNGKeyArray) -> Params:
    """Fresh parameters; with them the flow changes nothing, and the density is a standard normal.

    Args:
      tune: width of z, number of blocks and their width.
      num_conditions: particle parameters that the density depends on.
      key: decides the kernels.
    """
    keys = jax.random.split(key, tune.flow_blocks)
    sizes = (tune.embedding_dim, num_conditions, tune.flow_width)
    return {f"block_{i}": _init_block(*sizes, keys[i]) for i in range(tune.flow_blocks)}


def flow_log_density(
    params: Params, z: Float[Array, "row feat"], condition: Float[Array, "row condition"]
) -> Float[Array, " row"]:
    """Logarithm of the density of each z, given its condition.

    Args:
      params: as `init_flow` makes them.
      z: hit embeddings.
      condition: parameters of the hit's particle, such as vertex, momentum and charge, brought to
        order 1 by the caller.
    """
    noise, log_determinant = flow_noise(params, z, condition)
    log_normal = -0.5 * (jnp.square(noise) + jnp.log(2 * jnp.pi)).sum(axis=1)
    return log_normal + log_determinant


def flow_noise(
    params: Params, z: Float[Array, "row feat"], condition: Float[Array, "row condition"]
) -> tuple[Float[Array, "row feat"], Float[Array, " row"]]:
    """The noise that z came from, and log |det| of the Jacobian d noise / d z."""
    log_determinant = jnp.zeros(len(z), z.dtype)
    for i in range(len(params)):
        shift, log_scale = _shift_and_log_scale(params[f"block_{i}"], z, condition)
        # Channels in the reverse order: the last of this block is the first of the next.
        z = ((z - shift) * jnp.exp(-log_scale))[:, ::-1]
        log_determinant -= log_scale.sum(axis=1)
    return z, log_determinant


def _shift_and_log_scale(block, z, condition):
    """Shift and log-scale of each channel, from the channels before it and the condition."""
    to_hidden, between, to_output = _masks(z.shape[1], block["hidden"]["kernel"].shape[0])
    hidden = _linear(block["input"], z, to_hidden) + condition @ block["condition"]["kernel"]
    hidden = _linear(block["hidden"], jnp.tanh(hidden), between)
    output = _linear(block["output"], jnp.tanh(hidden), jnp.tile(to_output, (1, 2)))
    shift, raw = jnp.split(output, 2, axis=1)
    return shift, MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE)


def _linear(layer, x, mask):
    return x @ jnp.where(mask, layer["kernel"], 0) + layer["bias"][None, :]


def _masks(
    num_features: int, width: int
) -> tuple[Bool[Array, "feat unit"], Bool[Array, "unit unit"], Bool[Array, "unit feat"]]:
    """Which weights are there, so that output k sees the inputs before k alone.

    A hidden unit of degree d sees the first d inputs; units of all degrees take turns.
    """
    channel, degree = jnp.arange(num_features), jnp.arange(width) % num_features
    return (
        channel[:, None] < degree[None, :],
        degree[:, None] <= degree[None, :],
        degree[:, None] <= channel[None, :],
    )


def _init_block(num_features: int, num_conditions: int, width: int, key: PRNGKeyArray):
    first, second, third = jax.random.split(key, 3)

    def layer(kernel):
        return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}

    return {
        "input": layer(XAVIER_NORMAL(first, (num_features, width))),
        "condition": {"kernel": XAVIER_NORMAL(second, (num_conditions, width))},
        "hidden": layer(XAVIER_NORMAL(third, (width, width))),
        "output": layer(jnp.zeros((width, 2 * num_features))),
    }
