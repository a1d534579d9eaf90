"""Device side: optimiser and learning-rate schedule from a Tune (algorithm section 7)."""

import math

import jax
import jax.numpy as jnp
import optax

from hypertrack_jax.tunes.tune import OptimizerTune


def learning_rate_schedule(tune: OptimizerTune) -> optax.Schedule:
    """Learning rate as a function of the step, without a device read.

    `warm-cos` is cosine annealing with warm restarts (Loshchilov and Hutter, arXiv:1608.03983,
    eq. 5) between the peak and `floor` times the peak, restarting every `period` steps; `cos` is
    the first `period` steps of it, and then the floor. `exp` and `step` fall without end.
    """

    def cosine(fraction):
        return tune.floor + (1 - tune.floor) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))

    shapes = {
        "constant": jnp.ones_like,
        "warm-cos": lambda step: cosine(jnp.mod(step, tune.period) / tune.period),
        "cos": lambda step: cosine(jnp.minimum(step / tune.period, 1)),
        # float32 keeps two digits of the 1e-5 in 1 - 1e-5, and all digits of its logarithm.
        "exp": lambda step: jnp.exp(step * math.log1p(-tune.exp_decay)),
        "step": lambda step: tune.step_factor ** jnp.floor(step / tune.step_period),
    }
    shape = shapes[tune.scheduler_type]

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(tune.warmup_steps, 1))
        return tune.learning_rate * rise * shape(step)

    return schedule


def make_optimizer(tune: OptimizerTune) -> optax.GradientTransformation:
    """Global-norm clipping, then the optimiser; weight decay acts on weight matrices alone.

    `AdamW` decays the weights apart from the gradient (Loshchilov and Hutter, arXiv:1711.05101).
    `Adam` and `SGD`, with momentum, have the decay added to the clipped gradient, as PyTorch does,
    which is the gradient of an L2 penalty.
    """
    rate = learning_rate_schedule(tune)
    penalty = optax.add_decayed_weights(tune.weight_decay, decayed_mask)
    optimizers = {
        "AdamW": optax.adamw(
            rate, eps=tune.epsilon, weight_decay=tune.weight_decay, mask=decayed_mask
        ),
        "Adam": optax.chain(penalty, optax.adam(rate, eps=tune.epsilon)),
        "SGD": optax.chain(penalty, optax.sgd(rate, momentum=tune.momentum)),
    }
    return optax.chain(optax.clip_by_global_norm(tune.clip_norm), optimizers[tune.optimizer])


def decayed_mask(params):
    """True for the weight matrices of a parameter tree, False for biases and norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
