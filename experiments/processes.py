"""The flags by which several processes, on one machine or on many, train one model together."""

import logging

from absl import flags

from hypertrack_jax.training.devices import join_processes

COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where all meet; default: one process."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are, each started by this same command."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def join() -> None:
    """Meets the other processes, if the flags ask for any; only process 0 logs the training.

    Raises:
      ValueError: the flags do not go together.
      OSError: the others are not there.
    """
    join_processes(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if PROCESS_ID.value:
        logging.getLogger("hypertrack_jax").setLevel(logging.ERROR)
