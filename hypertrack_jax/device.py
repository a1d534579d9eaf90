"""Both sides: kind and memory of the device that programs run on, and its block sizes.

Every size that depends on the device is in `CPU` and `ACCELERATOR`. They change speed, memory and
the compiled programs; the results stay the same up to rounding. The sizes of `CPU` were
measured on two cores of an AMD EPYC or an Intel Xeon. None of `ACCELERATOR` has been measured yet;
`experiments/accelerator.py` measures them on a card, and says which to change here.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax

from hypertrack_jax import memory
from hypertrack_jax.errors import UserError


class Blocks(NamedTuple):
    """How much a program takes at once."""

    edges: int
    """Edges that the edge predictor handles together in inference."""
    training_edges: int
    """The same in training, above `whole_edges`."""
    whole_edges: int
    """Largest edge capacity at which training keeps what it computes for all edges: 8 kB an edge.
    Above it, blocks of edges are computed again for the gradient, which takes a fifth to a
    twentieth of the memory."""
    filter_pairs: int
    """Pairs that the filter scores together."""
    filter_hits: int
    """Hits whose edges the filter compares together, with about 40 bytes for each edge."""
    least_blocks: int
    """Blocks that the room for edges or pairs is parted into, at least. In a small event half of
    the room and more is padding, and blocks of padding alone are passed over."""
    located_hits: int
    """Hits that look for their cells together."""
    spanned_micrographs: int
    """Micrographs whose hits are gathered together."""
    few_micrographs: int
    """Fewest micrographs that go through the transformer together."""
    many_micrographs: int
    """Most of them. Between the two it is 1/64 of the micrographs of a round."""


CPU = Blocks(
    # What is computed for so many edges stays in the cache.
    edges=8192,
    # Twice as many took 30 % longer at 2e5 edges, and 5 % less at 2.4e6, where every block adds to
    # a larger gradient.
    training_edges=16384,
    # With more edges, blocks are about as fast on two cores, but take twice as long to compile;
    # with fewer, they were up to a quarter slower.
    whole_edges=131072,
    filter_pairs=65536,
    # What is read and written for so few hits stays in the cache.
    filter_hits=512,
    # With 8, an event at pile-up 2 took 101 instead of 151 ms of processor time; at pile-up 20
    # blocks that small keep one core busy and not both, and with 2 to 4 it was fastest.
    least_blocks=4,
    # The lists of cells stay in the cache from one scan to the next.
    located_hits=4096,
    # A chunk ends when all of its micrographs are complete, so few wait for the largest.
    spanned_micrographs=64,
    # Few are padded to the width of a larger one, and all stay in the cache.
    few_micrographs=16,
    # The micrographs of one chunk differ little in size; both cores have work.
    many_micrographs=128,
)
"""Measured."""
ACCELERATOR = Blocks(
    # An array of 64 values for each edge has 34 MB, which fits in the L2 cache of an H100 (50 MB),
    # and there are thirty values for each of its threads.
    edges=131072,
    training_edges=131072,
    # As on a CPU: 1 GB. A card of 80 GB could keep 4e6 edges.
    whole_edges=131072,
    # As on a CPU. A full event has 5e6 pairs, so 75 blocks, each of a few dozen kernels.
    filter_pairs=65536,
    # As on a CPU. A full event has 200 blocks.
    filter_hits=512,
    # Padding costs less than the kernels of another block.
    least_blocks=1,
    # All hits of a full event: the lists take 50 MB.
    located_hits=131072,
    # All: a loop over chunks would wait for the device in each.
    spanned_micrographs=2**20,
    # The transformer takes as many kernels for one as for many.
    few_micrographs=2048,
    many_micrographs=2048,
)
"""Estimates for an H100; none is measured."""


def is_cpu() -> bool:
    """Whether programs are compiled for a CPU."""
    return jax.default_backend() == "cpu"


def blocks() -> Blocks:
    """The sizes for the device that a program is traced for.

    A jitted function keeps those that it was traced with.
    """
    return CPU if is_cpu() else ACCELERATOR


def size_of_block(most: int, capacity: int) -> int:
    """Entries that a program takes at once, of a list with room for `capacity`, at most `most`."""
    return min(most, max(-(-capacity // blocks().least_blocks), 1))


def free_memory() -> int | None:
    """Bytes that a program can still take on its device; None if unknown.

    On an accelerator jax takes three quarters of the memory for itself, or the share that the
    environment variable XLA_PYTHON_CLIENT_MEM_FRACTION names; the rest is never used.
    """
    if is_cpu():
        return memory.available_memory()
    told = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in told:
        return None
    return told["bytes_limit"] - told.get("bytes_in_use", 0)


@contextlib.contextmanager
def memory_told(what: str, remedy: str) -> Iterator[None]:
    """Turns the out-of-memory errors of XLA and NumPy into one sentence.

    Args:
      what: the work in the block, for the message.
      remedy: what the user can choose instead of more memory.

    Raises:
      UserError: the memory ran out.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the memory ran out in {what}; choose {remedy}, or a device with more memory."
        ) from error
