"""Has the libraries tell those who run a script only what is of use to them."""

import logging
import os

import absl.logging
from absl import flags

# Before jax starts: XLA tells two lines of error for each program that it loads from disk, though
# none occurred (openxla/xla issue 44565). Real errors are raised, and a crash is told at any level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def choose_logs() -> None:
    """Warnings of jax and Orbax, unless --verbosity says else, and what our own library tells."""
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("hypertrack_jax").setLevel(logging.INFO)
