"""The networks' formulas in NumPy, without masks; and random weights for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5


def silu(x):
    return x / (1 + np.exp(-x))


def linear(params: Any, x):
    return x @ params["kernel"] + params["bias"]


def softmax(x):
    """Over the last axis."""
    weight = np.exp(x - x.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def batch_norm(params: Any, x, stats: Any = None):
    """By the moments of the rows, or by running ones."""
    mean = x.mean(axis=0) if stats is None else stats["mean"]
    var = x.var(axis=0) if stats is None else stats["var"]
    return (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]


def normed_linear(params: Any, x, stats: Any = None):
    """Linear, SiLU, BatchNorm of rows."""
    return batch_norm(params["norm"], silu(linear(params, x)), stats and stats["norm"])


def layer_norm(params: Any, x):
    return batch_norm({"scale": 1, "bias": 0}, x.T).T * params["scale"] + params["bias"]


def attention_block(params: Any, x, other, num_heads):
    """MAB(X, Y) of algorithm.md, section 4, one head after the other."""
    query, key, value = (
        linear(params[name], rows)
        for name, rows in (("query", x), ("key", other), ("value", other))
    )
    seen = np.zeros_like(query)
    for head in np.split(np.arange(query.shape[-1]), num_heads):
        score = query[:, head] @ key[:, head].T / np.sqrt(query.shape[-1])
        seen[:, head] = softmax(score) @ value[:, head]
    hidden = layer_norm(params["attention_norm"], x + linear(params["output"], seen))
    update = silu(linear(params["second"], silu(linear(params["first"], hidden))))
    return layer_norm(params["norm"], hidden + update)


def random_weights(init, seed=0):
    """Variables in float64 of the shapes that `init` gives, without having to run it.

    Kernels keep values of order 1 so; no bias is 0, no scale 1, and no variance negative.
    """
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape))
        spread = 1 / np.sqrt(leaf.shape[0]) if path[-1].key == "kernel" else 0.3
        return jnp.asarray(rng.normal(0, spread, leaf.shape))

    return jax.tree_util.tree_map_with_path(drawn, dict(jax.eval_shape(init)))
