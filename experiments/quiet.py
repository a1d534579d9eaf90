"""Has the libraries tell those who run a script only what is of use to them."""

import logging

import absl.logging
from absl import flags

from hypertrack_jax.command.start import collect_garbage_rarely, quiet_xla

quiet_xla()
collect_garbage_rarely()


def choose_logs() -> None:
    """Warnings of jax and Orbax, unless --verbosity says else, and what our own library tells."""
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("hypertrack_jax").setLevel(logging.INFO)
