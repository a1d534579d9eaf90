"""Device side: the work on rows and edges that XLA needs help with, each beside its plain form.

The plain form says what is computed. The fast form is taken on a CPU alone; `tests/networks` hold
values and gradients of both against each other. Together the fast forms took 300 ms of processor
time instead of 356, for a training step of phase 1 on 3.1e4 edges (jax 0.10.1, two busy cores).

In both forms sums over rows and edges, those of gradients too, are taken in float32 at least: in
bfloat16 a sum of ones ends at 256. Products of matrices add up in float32 on accelerators anyway.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax import device
from hypertrack_jax.graph.segment import segment_sum

ROW_BLOCK = 256
"""Rows per partial sum of a kernel's gradient; edge capacities are multiples of it."""


def block_size(num_edges: int, are_pairs: bool, train: bool = False) -> int:
    """How many of `num_edges` edges are in a block; of pairs half, because each is two edges."""
    size = device.blocks().training_edges if train else device.blocks().edges
    size = size // 2 if are_pairs else size
    return min(size, max(num_edges, 1)) if train else device.size_of_block(size, num_edges)


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Type in which sums of `dtype` are accumulated: float32 at least."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def under_rows(value: Float[Array, " feat"], x: Float[Array, "row feat"]) -> Array:
    """The value of each channel in every row of x, and in its type.

    It is rounded last, so that its gradient is summed in its own type.
    """
    return jnp.broadcast_to(value[None, :], x.shape).astype(x.dtype)


def rows_at(
    x: Float[Array, "row ..."], index: Int[Array, " edge"], sorted_ids: bool = True
) -> Float[Array, "edge ..."]:
    """`x[index]`, whose gradient is summed in float32 at least; `sorted_ids` for rising indices."""
    return cast(jax.Array, _rows_at(x, index, sorted_ids, len(x)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows_at(x, index, sorted_ids: bool, num_rows: int):
    return x[index]


def _rows_forward(x, index, sorted_ids, num_rows):
    return x[index], index


def _rows_backward(sorted_ids, num_rows, index, gradient):
    wide = gradient.astype(wide_dtype(gradient.dtype))
    total = segment_sum(wide, index, num_rows, sorted_ids=sorted_ids)
    return total.astype(gradient.dtype), None


_rows_at.defvjp(_rows_forward, _rows_backward)


def plain_silu(x: Float[Array, "*row feat"]) -> Float[Array, "*row feat"]:
    """The SiLU, x sigmoid(x)."""
    return x * jax.nn.sigmoid(x)


@jax.custom_vjp
def fast_silu(x: Float[Array, "*row feat"]) -> Float[Array, "*row feat"]:
    """The same; keeps x alone for the gradient and computes the sigmoid again."""
    return plain_silu(x)


def _silu_forward(x):
    return plain_silu(x), x


def _silu_backward(x, gradient):
    # Otherwise XLA reuses the sigmoid of the forward pass and keeps it in memory until here.
    x = jax.lax.optimization_barrier(x)
    sigmoid = jax.nn.sigmoid(x)
    return (gradient * (sigmoid + x * sigmoid * (1 - sigmoid)),)


fast_silu.defvjp(_silu_forward, _silu_backward)


def plain_tall_matmul(
    x: Float[Array, "row in_feat"], kernel: Float[Array, "in_feat feat"]
) -> Float[Array, "row feat"]:
    """The product x @ kernel of many rows."""
    return x @ kernel


@jax.custom_vjp
def fast_tall_matmul(
    x: Float[Array, "row in_feat"], kernel: Float[Array, "in_feat feat"]
) -> Float[Array, "row feat"]:
    """The same; sums the gradient of the kernel over blocks of rows.

    XLA on CPU contracts over a long axis at a fraction of the speed of a batch of short ones.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(residuals, gradient):
    x, kernel = residuals
    num_blocks = len(x) // ROW_BLOCK if len(x) % ROW_BLOCK == 0 else 1
    # With the axes so: x^T laid out in memory first is faster, but XLA hands that product on
    # to YNNPACK, which crashes where there are many blocks (jax issue 39257 is of the kind).
    of_kernel = jnp.einsum(
        "bri,brf->bif",
        x.reshape(num_blocks, -1, x.shape[1]),
        gradient.reshape(num_blocks, -1, gradient.shape[1]),
        preferred_element_type=wide_dtype(x.dtype),
    )
    return gradient @ kernel.T, of_kernel.sum(axis=0).astype(kernel.dtype)


fast_tall_matmul.defvjp(_matmul_forward, _matmul_backward)


def plain_moments(x: Float[Array, "row feat"], mask: Bool[Array, " row"]):
    """Mean, biased variance and number of the real rows, per channel; zeros without real rows.

    Two passes: the difference of E[x^2] and E[x]^2 loses the variance of inputs in mm to rounding.
    Padding is emptied first, because its square may be infinite.
    """
    wide = wide_dtype(x.dtype)
    real = jnp.where(mask[:, None], x.astype(wide), 0)
    count = jnp.maximum(mask.sum(dtype=wide), 1)
    mean = real.sum(axis=0) / count
    centred = jnp.where(mask[:, None], real - mean[None, :], 0)
    return mean, jnp.square(centred).sum(axis=0) / count, count


@jax.custom_vjp
def fast_moments(x: Float[Array, "row feat"], mask: Bool[Array, " row"]):
    """The same by products; keeps x alone for the gradient, which is another pass."""
    wide = wide_dtype(x.dtype)
    weight = mask.astype(wide)
    count = jnp.maximum(weight.sum(), 1)
    real = jnp.where(mask[:, None], x, 0)
    mean = jnp.einsum("r,rf->f", mask.astype(x.dtype), real, preferred_element_type=wide) / count
    centred = real.astype(wide) - mean[None, :]
    var = jnp.einsum("r,rf->f", weight, centred * centred) / count
    return mean, var, count


def _moments_forward(x, mask):
    mean, var, count = fast_moments(x, mask)
    return (mean, var, count), (x, mask, mean, count)


def _moments_backward(residuals, gradients):
    x, mask, mean, count = residuals
    of_mean, of_var, _ = gradients
    # The derivative of the variance by its mean is 0, so the mean needs no gradient here.
    centred = x.astype(mean.dtype) - mean[None, :]
    of_row = of_mean[None, :] + 2 * of_var[None, :] * centred
    return (jnp.where(mask[:, None], of_row / count, 0).astype(x.dtype), None)


fast_moments.defvjp(_moments_forward, _moments_backward)


def plain_pair_product(
    x: Float[Array, "hit feat"], senders: Int[Array, " edge"], receivers: Int[Array, " edge"]
) -> Float[Array, "edge feat"]:
    """x_i x_j of every edge, sorted by receiver i."""
    return rows_at(x, receivers) * rows_at(x, senders, sorted_ids=False)


@jax.custom_vjp
def fast_pair_product(
    x: Float[Array, "hit feat"], senders: Int[Array, " edge"], receivers: Int[Array, " edge"]
) -> Float[Array, "edge feat"]:
    """The same; keeps x alone for the gradient, and no array over edges."""
    return x[receivers] * x[senders]


def _product_forward(x, senders, receivers):
    return fast_pair_product(x, senders, receivers), (x, senders, receivers)


def _product_backward(residuals, gradient):
    x, senders, receivers = residuals
    # Otherwise XLA reuses x_i and x_j of the forward pass and keeps them in memory until here.
    x = jax.lax.optimization_barrier(x)

    def total(other, ids, sorted_ids):
        of_edge = (gradient * x[other]).astype(wide_dtype(x.dtype))
        return segment_sum(of_edge, ids, len(x), sorted_ids=sorted_ids)

    both = total(senders, receivers, True) + total(receivers, senders, False)
    return both.astype(x.dtype), None, None


fast_pair_product.defvjp(_product_forward, _product_backward)


def _of_backend(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The form for the backend that a program is traced for."""

    def chosen(*arguments: Any) -> Any:
        return (fast if device.is_cpu() else plain)(*arguments)

    return chosen


silu = _of_backend(fast_silu, plain_silu)
tall_matmul = _of_backend(fast_tall_matmul, plain_tall_matmul)
masked_moments = _of_backend(fast_moments, plain_moments)
pair_product = _of_backend(fast_pair_product, plain_pair_product)
