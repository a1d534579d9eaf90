"""Device side: the multihead attention block that set transformers are made of."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypertrack_jax.networks.kernels import silu, wide_dtype
from hypertrack_jax.networks.mlp import Linear, joint_linear


class LayerNorm(nn.Module):
    """Every row brought to mean 0 and variance 1, then scaled and shifted per channel.

    Ba, Kiros and Hinton, arXiv:1607.06450. Statistics are taken in float32 at least.
    """

    features: int
    epsilon: float = 1e-5

    def setup(self):
        """Declares scale and bias."""
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Float[Array, "cluster hit feat"]) -> Float[Array, "cluster hit feat"]:
        """Applies the norm; a row of equal values becomes the bias."""
        wide = x.astype(wide_dtype(x.dtype))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (value[None, None].astype(wide.dtype) for value in (self.scale, self.bias))
        return (normed * scale + bias).astype(x.dtype)


class AttentionBlock(nn.Module):
    """MAB(X, Y): the set X updated by what its members see in the set Y (arXiv:1810.00825, eq. 6).

    H = LN(X + W_o attention(X, Y)) and then LN(H + MLP(H)), where SiLU follows both layers of the
    MLP. The residual is X itself, and not its projection W_q X as in that paper's code.
    """

    features: int
    num_heads: int

    def setup(self):
        """Declares the four projections, the MLP and the norms."""
        self.query, self.key, self.value, self.output, self.first, self.second = (
            Linear(self.features, self.features) for _ in range(6)
        )
        self.attention_norm, self.norm = (LayerNorm(self.features) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "cluster hit feat"],
        other: Float[Array, "cluster other feat"],
        other_mask: Bool[Array, "cluster other"],
    ) -> Float[Array, "cluster hit feat"]:
        """X, updated by the members of Y that the mask selects; an empty mask adds nothing."""
        key, value = self.keys_and_values(other)
        return self.given(x, key, value, other_mask)

    def over_itself(
        self, x: Float[Array, "cluster hit feat"], mask: Bool[Array, "cluster hit"]
    ) -> Float[Array, "cluster hit feat"]:
        """The self-attention block, SAB(X) = MAB(X, X)."""
        query, key, value = joint_linear([self.query, self.key, self.value], x)
        return self.updated(x, attention(query, key, value, mask, self.num_heads))

    def keys_and_values(self, other: Float[Array, "*row feat"]) -> list[Float[Array, "*row feat"]]:
        """Keys and values of the members of Y, for `given`."""
        return joint_linear([self.key, self.value], other)

    def given(
        self,
        x: Float[Array, "cluster hit feat"],
        key: Float[Array, "cluster other feat"],
        value: Float[Array, "cluster other feat"],
        mask: Bool[Array, "cluster other"],
    ) -> Float[Array, "cluster hit feat"]:
        """X, updated by the `keys_and_values` of Y."""
        return self.updated(x, attention(self.query(x), key, value, mask, self.num_heads))

    def updated(
        self, x: Float[Array, "#cluster hit feat"], seen: Float[Array, "cluster hit feat"]
    ) -> Float[Array, "cluster hit feat"]:
        """X, updated by what the attention gave."""
        hidden = self.attention_norm(x + self.output(seen))
        return self.norm(hidden + silu(self.second(silu(self.first(hidden)))))


def attention(
    query: Float[Array, "cluster hit feat"],
    key: Float[Array, "cluster other feat"],
    value: Float[Array, "cluster other feat"],
    mask: Bool[Array, "cluster other"],
    num_heads: int,
) -> Float[Array, "cluster hit feat"]:
    """softmax(Q K^T / sqrt(feat)) V over the members of the mask, each head on its own channels.

    Scores are divided by the root of the full width, as published, and not by that of a head's.
    Where the mask has no member the result is 0.
    """
    scale = 1 / math.sqrt(query.shape[-1])
    wide = wide_dtype(query.dtype)
    seen = []
    # One head after the other, because XLA on CPU transposes for a batch over clusters and heads,
    # which is slower.
    for q, k, v in zip(
        *(jnp.split(x, num_heads, axis=-1) for x in (query, key, value)), strict=True
    ):
        score = jnp.einsum("cqf,ckf->cqk", q, k, preferred_element_type=wide) * scale
        weight = masked_softmax(score, mask[:, None, :]).astype(v.dtype)
        seen.append(jnp.einsum("cqk,ckf->cqf", weight, v))
    return jnp.concatenate(seen, axis=-1)


def masked_softmax(
    score: Float[Array, "cluster hit other"], mask: Bool[Array, "cluster #hit other"]
) -> Float[Array, "cluster hit other"]:
    """Softmax over the last axis within the mask; 0 outside of it, also where it is empty."""
    real = jnp.where(mask, score, jnp.finfo(score.dtype).min)
    # The peak only guards against overflow; its gradient cancels exactly.
    peak = jax.lax.stop_gradient(real.max(axis=-1, keepdims=True))
    weight = jnp.where(mask, jnp.exp(real - peak), 0)
    total = weight.sum(axis=-1, keepdims=True)
    return weight / jnp.where(total > 0, total, 1)
