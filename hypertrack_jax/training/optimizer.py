"""Device side: optimiser and learning-rate schedule from a Tune (algorithm section 7)."""

import jax
import jax.numpy as jnp
import optax

from hypertrack_jax.tunes.tune import OptimizerTune


def learning_rate_schedule(tune: OptimizerTune) -> optax.Schedule:
    """Learning rate as a function of the step, without a device read.

    `warm-cos` is cosine annealing with warm restarts (Loshchilov and Hutter, arXiv:1608.03983,
    eq. 5) between the peak and `floor` times the peak, restarting every `period` steps.
    """

    def cosine(step):
        fraction = jnp.mod(step, tune.period) / tune.period
        return tune.floor + (1 - tune.floor) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))

    shapes = {"constant": jnp.ones_like, "warm-cos": cosine}
    shape = shapes[tune.scheduler_type]

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(tune.warmup_steps, 1))
        return tune.learning_rate * rise * shape(step)

    return schedule


def make_optimizer(tune: OptimizerTune) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW whose weight decay acts on weight matrices alone."""
    adamw = optax.adamw(
        learning_rate_schedule(tune),
        eps=tune.epsilon,
        weight_decay=tune.weight_decay,
        mask=decayed_mask,
    )
    return optax.chain(optax.clip_by_global_norm(tune.clip_norm), adamw)


def decayed_mask(params):
    """True for the weight matrices of a parameter tree, False for biases and norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
