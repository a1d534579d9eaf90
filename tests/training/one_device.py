"""The training step of the loop on a single device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hypertrack_jax.model.parameters import GNN_PHASE
from hypertrack_jax.reconstruction.devices import EVENT_AXIS
from hypertrack_jax.training.devices import Devices, make_spread_step


def devices_for(batch_size, *numbers):
    """Some devices by their numbers; the first where none is given."""
    mesh = Mesh(np.array([jax.devices()[number] for number in numbers or (0,)]), (EVENT_AXIS,))
    return Devices(batch_size, mesh, mesh)


def make_train_step(tune, batch_size, dtype=jnp.float32, phase=GNN_PHASE):
    """The update `(state, graphs, key) -> (state, metrics)`; `state` is donated."""
    return make_spread_step(tune, dtype, phase, devices_for(batch_size))
