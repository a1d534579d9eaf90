"""Fresh weights that find something."""

from hypertrack_jax.clustering.transformer import TRANSFORMER
from hypertrack_jax.model.parameters import CLUSTER


def taking_all(params):
    """The parameters of a model, changed so that every hit of a micrograph belongs to it."""
    transformer = params[CLUSTER][TRANSFORMER]
    last = transformer["membership_2"]
    transformer = {**transformer, "membership_2": {**last, "bias": last["bias"] + 30}}
    return {**params, CLUSTER: {**params[CLUSTER], TRANSFORMER: transformer}}
