"""Device side: the set transformer, hits and pivots in, membership of every hit out (section 4)."""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from hypertrack_jax.errors import UserError
from hypertrack_jax.networks.attention import AttentionBlock
from hypertrack_jax.networks.kernels import silu
from hypertrack_jax.networks.mlp import Linear
from hypertrack_jax.tunes.tune import NetworkTune


class SetTransformer(nn.Module):
    """Which hits of a set belong to the track of its pivots, a set per cluster.

    An encoder shared by hits and pivots; an attention block in which the hits look at the pivots;
    blocks in which they look at each other; an MLP to one logit for each. With the published tune
    it has 8,320 + 5 * 25,216 + 2,625 = 137,025 parameters.

    Source: Lee et al., "Set Transformer", arXiv:1810.00825; arXiv:2309.14113.
    """

    tune: NetworkTune

    def setup(self):
        """Declares the layers."""
        width, num_heads = self.tune.token_dim, self.tune.num_heads
        if width % num_heads:
            raise UserError(
                f"a set transformer of width {width} (embedding_dim + 3) cannot share it among "
                f"{num_heads} heads; choose num_heads or embedding_dim so that it is divided."
            )
        self.encoder = [Linear(width, width) for _ in range(2)]
        self.of_pivots = AttentionBlock(width, num_heads)
        self.of_hits = [
            AttentionBlock(width, num_heads) for _ in range(self.tune.num_attention_blocks)
        ]
        dims = (width, width // 2, width // 4, 1)
        self.membership = [Linear(dims[i], dims[i + 1]) for i in range(3)]

    def __call__(
        self,
        tokens: Float[Array, "cluster hit token"],
        hit_mask: Bool[Array, "cluster hit"],
        pivot_tokens: Float[Array, "cluster pivot token"],
        pivot_mask: Bool[Array, "cluster pivot"],
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "cluster hit"]:
        """Membership logits.

        Args:
          tokens: [z, x] of the hits of each cluster.
          hit_mask: True for real hits.
          pivot_tokens: [z, x] of its pivots.
          pivot_mask: True for real pivots.
          dtype: type of the arrays over hits; softmax and norms are in float32 or wider.

        Returns:
          One logit for each hit; those of padding are meaningless but finite.
        """
        pivots = self._encoded(pivot_tokens, pivot_mask, dtype)
        x = self._encoded(tokens, hit_mask, dtype)
        x = self.of_pivots(x, pivots, pivot_mask)
        return _chain(self.membership, self._over_hits(x, hit_mask))[..., 0]

    def _over_hits(self, x, hit_mask):
        """The hits after all blocks in which they look at each other."""
        if self.is_initializing() or len(self.of_hits) < 2:
            for block in self.of_hits:
                x = block.over_itself(x, hit_mask)
            return x
        # A loop compiles one block instead of all of them.
        alike = self.of_hits[0].clone(parent=None, name=None)

        def next_block(x, variables):
            return alike.apply(variables, x, hit_mask, method="over_itself"), None

        stacked = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *[block.variables for block in self.of_hits]
        )
        return jax.lax.scan(next_block, x, stacked)[0]

    def _encoded(self, tokens, mask, dtype):
        # Padding is set to 0, so that infinities in it reach no gradient.
        real = jnp.where(mask[..., None], tokens, 0).astype(dtype)
        return _chain(self.encoder, real)


def init_set_transformer(tune: NetworkTune, key: PRNGKeyArray) -> dict[str, Any]:
    """Fresh parameters: Xavier-normal kernels, biases 0, norms that change nothing."""
    token, mask = jnp.zeros((1, 1, tune.token_dim)), jnp.ones((1, 1), bool)
    variables = SetTransformer(tune).init(key, token, mask, token, mask)
    return cast(dict[str, Any], variables["params"])


def membership_logit(
    tune: NetworkTune,
    params: Any,
    tokens: Float[Array, "cluster hit token"],
    hit_mask: Bool[Array, "cluster hit"],
    pivot_tokens: Float[Array, "cluster pivot token"],
    pivot_mask: Bool[Array, "cluster pivot"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "cluster hit"]:
    """Logits of a `SetTransformer` with these parameters; it explains the arguments."""
    logit = SetTransformer(tune).apply(
        {"params": params}, tokens, hit_mask, pivot_tokens, pivot_mask, dtype
    )
    return cast(jax.Array, logit)


def _chain(layers: Sequence[Linear], x):
    """The layers one after the other, with SiLU between them."""
    *hidden, last = layers
    for layer in hidden:
        x = silu(layer(x))
    return last(x)
