"""A jaxlib that computes wrong numbers turns this red, and not the physics wrong."""

import os
import subprocess
import sys

REDUCTIONS = """
import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
matrix, rows = rng.normal(size=(3, 3)), rng.normal(size=(32769, 3))
expected = ((rows @ matrix.T) ** 2).sum(axis=1)
with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    constant = jnp.asarray(matrix)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((constant @ row) ** 2)))(rows)
assert found.dtype == np.float64
np.testing.assert_allclose(found, expected, rtol=1e-12)
"""


def test_batched_float64_reductions_on_cpu():
    # jax issue 39103: 0.10.2 gets every second of these sums wrong. In a process that compiles as
    # users do: the tests themselves have the compiler optimise less.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", REDUCTIONS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
