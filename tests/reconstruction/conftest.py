"""What the tests of reconstruction share: a fresh model and its parts."""

import jax
import pytest
from toy_model import TUNE, toy_voxdyn

from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.step import init_state


@pytest.fixture(scope="session")
def state():
    return jax.jit(init_state, static_argnums=0)(TUNE, jax.random.key(0))


@pytest.fixture(scope="session")
def voxdyn():
    return toy_voxdyn()


@pytest.fixture(scope="session")
def model(state, voxdyn):
    return Reconstructor(TUNE, voxdyn, state.params, state.batch_stats)
