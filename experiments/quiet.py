"""Keeps the libraries from printing what is of no use to those who run a script."""

import logging

import absl.logging
from absl import flags

from hypertrack_jax.command.start import collect_garbage_rarely, quiet_xla

quiet_xla()
collect_garbage_rarely()


def choose_logs() -> None:
    """Shows our own log, and of jax and Orbax only warnings, unless --verbosity says otherwise."""
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("hypertrack_jax").setLevel(logging.INFO)
