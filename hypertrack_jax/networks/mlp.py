"""Device side: the MLP recipe of the network, Linear then SiLU then BatchNorm, over padded rows.

A BatchNorm is an affine map per channel once its statistics are known. `BatchNorm` returns that map
and does not apply it, so that it can be folded into the Linear that follows; on arrays with a row
per edge this saves a pass over memory in every layer, in training as well as in inference.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypertrack_jax.networks.kernels import masked_moments, silu, tall_matmul, under_rows

XAVIER_NORMAL = nn.initializers.xavier_normal()


class Affine(NamedTuple):
    """The map x -> x * scale + shift, one scale and one shift per channel."""

    scale: Float[Array, " feat"]
    shift: Float[Array, " feat"]

    def __call__(self, x: Float[Array, "row feat"]) -> Float[Array, "row feat"]:
        """Applies the map to every row."""
        return x * under_rows(self.scale, x) + under_rows(self.shift, x)


class BatchNorm(nn.Module):
    """BatchNorm over the real rows of one event, as PyTorch defines it.

    Batch statistics use the biased variance, running statistics the unbiased one; the running
    ones move by `momentum` towards the batch's (Ioffe and Szegedy, arXiv:1502.03167). Statistics
    are accumulated in float32 at least.
    """

    features: int
    momentum: float = 0.1
    epsilon: float = 1e-5

    def setup(self):
        """Declares scale, bias and the running statistics."""
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.features,))

    def running(self) -> Affine:
        """The normalisation by running statistics, for inference."""
        return self._affine(self.mean.value, self.var.value)

    def batch(self, x: Float[Array, "row feat"], mask: Bool[Array, " row"]) -> Affine:
        """The normalisation by the statistics of `x[mask]`; moves the running ones if mutable."""
        return self.of_moments(*masked_moments(x, mask))

    def of_moments(
        self, mean: Float[Array, " feat"], var: Float[Array, " feat"], count: Float[Array, ""]
    ) -> Affine:
        """The same from what `masked_moments` gives of those rows."""
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            self.mean.value = self._moved(self.mean.value, mean)
            self.var.value = self._moved(self.var.value, unbiased)
        return self._affine(mean, var)

    def _moved(self, running, value):
        value = jax.lax.stop_gradient(value)
        return (1 - self.momentum) * running + self.momentum * value.astype(running.dtype)

    def _affine(self, mean, var) -> Affine:
        scale = self.scale * jax.lax.rsqrt(var + self.epsilon)
        return Affine(scale, self.bias - mean * scale)


class Linear(nn.Module):
    """x W + b on the last axis."""

    in_features: int
    features: int

    def setup(self):
        """Declares kernel and bias."""
        self.kernel = self.param("kernel", XAVIER_NORMAL, (self.in_features, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Float[Array, "*row in_feat"]) -> Float[Array, "*row feat"]:
        """Applies the layer to every row."""
        (value,) = joint_linear([self], x)
        return value


def joint_linear(
    layers: Sequence[Linear], x: Float[Array, "*row in_feat"]
) -> list[Float[Array, "*row feat"]]:
    """What several layers, all of one width, give of the same rows, by a single product."""
    kernel = jnp.concatenate([layer.kernel for layer in layers], axis=1).astype(x.dtype)
    value = tall_matmul(x.reshape(-1, x.shape[-1]), kernel)
    value = value + under_rows(jnp.concatenate([layer.bias for layer in layers]), value)
    return jnp.split(value.reshape(*x.shape[:-1], -1), len(layers), axis=-1)


class NormedLinear(nn.Module):
    """Linear, then SiLU, then BatchNorm, the last as an `Affine` still to be applied."""

    in_features: int
    features: int

    def setup(self):
        """Declares kernel, bias and norm."""
        self.kernel = self.param("kernel", XAVIER_NORMAL, (self.in_features, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))
        self.norm = BatchNorm(self.features)

    def __call__(
        self,
        x: Float[Array, "row in_feat"],
        mask: Bool[Array, " row"],
        train: bool,
        before: Affine | None = None,
    ) -> tuple[Float[Array, "row feat"], Affine]:
        """Activations before the norm, and the norm; `before` is the norm that `x` still lacks."""
        kernel, bias = self.folded(before)
        hidden = silu(linear(x, kernel, bias))
        return hidden, self.norm.batch(hidden, mask) if train else self.norm.running()

    def folded(
        self, before: Affine | None
    ) -> tuple[Float[Array, "in_feat feat"], Float[Array, " feat"]]:
        """Kernel and bias with the norm of the layer before folded in."""
        return fold(before, self.kernel, self.bias)


def fold(before: Affine | None, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Kernel and bias that act on x as the given ones act on `before(x)`."""
    if before is None:
        return kernel, bias
    return before.scale[:, None] * kernel, before.shift @ kernel + bias


def linear(
    x: Float[Array, "row in_feat"],
    kernel: Float[Array, "in_feat feat"],
    bias: Float[Array, " feat"],
) -> Float[Array, "row feat"]:
    """The product x W + b in the type of x, whatever that of the weights."""
    value = tall_matmul(x, kernel.astype(x.dtype))
    return value + under_rows(bias, value)


class MLP(nn.Module):
    """A chain of `NormedLinear` layers, optionally ended by a plain Linear."""

    dims: tuple[int, ...]
    """Widths from the input to the output."""
    plain_last: bool = False
    """The last layer is a Linear without activation and norm."""

    def setup(self):
        """Declares the layers."""
        num_normed = len(self.dims) - 1 - self.plain_last
        self.layers = [NormedLinear(self.dims[i], self.dims[i + 1]) for i in range(num_normed)]
        if self.plain_last:
            self.last_kernel = self.param("kernel", XAVIER_NORMAL, self.dims[-2:])
            self.last_bias = self.param("bias", nn.initializers.zeros, self.dims[-1:])

    def __call__(
        self, x: Float[Array, "row in_feat"], mask: Bool[Array, " row"], train: bool
    ) -> Float[Array, "row feat"]:
        """Rows in, rows out; rows where `mask` is False do not touch the others."""
        affine = None
        for layer in self.layers:
            x, affine = layer(x, mask, train, affine)
        if not self.plain_last:
            return x if affine is None else affine(x)
        kernel, bias = fold(affine, self.last_kernel, self.last_bias)
        return linear(x, kernel, bias)

    def frozen_in_training(
        self, moments_of: Callable[[Callable[[Array], Array]], tuple[Array, Array, Array]]
    ) -> list[tuple[Array, Array]]:
        """The same with the norms of an event, whose rows are never all in memory.

        `moments_of` gives the `masked_moments` of what a function makes of the rows; it is asked
        once for each norm.
        """
        folded, affine = [], None
        for layer in self.layers:
            folded.append(layer.folded(affine))
            hidden = partial(_hidden, list(folded))
            affine = layer.norm.of_moments(*moments_of(hidden))
        return [*folded, fold(affine, self.last_kernel, self.last_bias)]

    def frozen(self, before: Affine | None = None) -> list[tuple[Array, Array]]:
        """Kernels and biases of an MLP with a plain last layer, norms by running statistics folded.

        With SiLU between them they give what `__call__` gives without `train`, in pure functions;
        `before` is a norm that their input still lacks.
        """
        folded, affine = [], before
        for layer in self.layers:
            folded.append(layer.folded(affine))
            affine = layer.norm.running()
        return [*folded, fold(affine, self.last_kernel, self.last_bias)]


def apply_frozen(
    layers: list[tuple[Array, Array]], x: Float[Array, "row in_feat"]
) -> Float[Array, "row feat"]:
    """Applies what `MLP.frozen` gives."""
    *hidden, (kernel, bias) = layers
    return linear(_hidden(hidden, x), kernel, bias)


def _hidden(
    layers: list[tuple[Array, Array]], x: Float[Array, "row in_feat"]
) -> Float[Array, "row feat"]:
    for kernel, bias in layers:
        x = silu(linear(x, kernel, bias))
    return x
