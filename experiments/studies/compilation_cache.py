"""Can the compilation cache crash a run? Many writes and loads, and the limit of memory mappings.

python experiments/studies/compilation_cache.py --processes=3 --tries=300
python experiments/studies/compilation_cache.py --mappings
"""

import mmap
import multiprocessing
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from hypertrack_jax.compilation import use_compilation_cache

PROCESSES = flags.DEFINE_integer("processes", 3, "Processes that share the directory.", 1)
TRIES = flags.DEFINE_integer("tries", 300, "Programs that each of them writes and loads.", 1)
MAPPINGS = flags.DEFINE_boolean("mappings", False, "Compile until memory mappings run out.")


def main(_: list[str]) -> None:
    """Prints how the processes ended."""
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        work = [compile_to_the_end] if MAPPINGS.value else PROCESSES.value * [write_and_load]
        arguments = (directory, TRIES.value)
        processes = [spawned.Process(target=target, args=arguments) for target in work]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            print("exit status", process.exitcode)


def program(number: int) -> Callable:
    """A program of its own for each number: products, a loop, a sort, a scatter."""

    def compute(x, index):
        y = jnp.sin(x) * (number + 1)
        sums, _ = jax.lax.scan(lambda c, row: (c + row @ x[:8, :8], None), y[:8, :8], jnp.eye(8))
        return jnp.zeros(64).at[index].add(jnp.sort(y, axis=0)[:, 0]) + sums.sum()

    return jax.jit(compute)


def inputs() -> tuple[jax.Array, jax.Array]:
    """What the programs take."""
    return jnp.linspace(0, 1, 64 * 32).reshape(64, 32), jnp.arange(64) // 3


def keep_all(directory: str) -> None:
    """Has every program kept, however quickly it is compiled."""
    use_compilation_cache(directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def write_and_load(directory: str, tries: int) -> None:
    """Compiles and loads each program; results must agree. A thread uses the device meanwhile."""
    keep_all(directory)
    is_over = threading.Event()

    def prefetch() -> None:
        while not is_over.is_set():
            jax.device_put(np.ones((500, 500), np.float32)).block_until_ready()

    thread = threading.Thread(target=prefetch)
    thread.start()
    for number in range(tries):
        compiled = np.asarray(program(number)(*inputs()))
        jax.clear_caches()
        np.testing.assert_array_equal(compiled, program(number)(*inputs()))
        jax.clear_caches()
    is_over.set()
    thread.join()


def compile_to_the_end(directory: str, tries: int) -> None:
    """Compiles with almost all mappings taken; the last line printed is before the crash."""
    keep_all(directory)
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    kept: list = [program(-1)(*inputs())]
    while (free := limit - len(Path("/proc/self/maps").read_text().splitlines())) > 100:
        # Protections alternate, since Linux merges neighbours that have the same.
        both = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
        kept += [mmap.mmap(-1, 8192, prot=both[i % 2]) for i in range(max(1, (free - 100) // 2))]
    for number in range(tries):
        kept.append(program(number))
        kept[-1](*inputs())
        print(number, len(Path("/proc/self/maps").read_text().splitlines()), flush=True)


if __name__ == "__main__":
    app.run(main)
