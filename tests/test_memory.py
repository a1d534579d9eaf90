"""Memory: what does not fit is refused before it begins, and what was freed is used again."""

import os
import resource
import subprocess
import sys

import pytest

from hypertrack_jax import memory
from hypertrack_jax.errors import UserError

PAGES_OF_A_RUN = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # All pages of 4 kB, whatever else the machine does.
import jax, jax.numpy as jnp
from hypertrack_jax.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

@jax.jit
def of_product(x):  # holds an array of 36 MB inside, which XLA cannot do without
    row = jnp.sin(x + jnp.arange(3000.0))
    matrix = row[:, None] * row[None, :]
    return (matrix @ matrix[:, :8]).max()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def pages_of_runs(number):
    before = pages()
    for _ in range(number):
        of_product(-1.0).block_until_ready()
    return pages() - before

pages_of_runs(10)  # what a run has not freed when the next begins is taken anew a few times
print(pages_of_runs(50))  # as many times on a busy machine, however many runs there are
"""


def test_memory_is_that_of_the_machine_and_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_memory() is None
    memory.MEMINFO.write_text("MemFree: 9 kB\nMemAvailable:   5000 kB\n")
    assert memory.available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory.available_memory() == 2000000
    limit_addresses(monkeypatch, 9 * resource.getpagesize())
    monkeypatch.setattr(memory, "STATM", tmp_path / "statm")
    memory.STATM.write_text("7 3 1 0 0 0 0\n")
    assert memory.available_memory() == 2 * resource.getpagesize()
    memory.STATM.write_text("11 3 1 0 0 0 0\n")
    assert memory.available_memory() == 0


def limit_addresses(monkeypatch, number):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (number, number))


def test_too_few_addresses_to_compile_are_told(monkeypatch):
    limit_addresses(monkeypatch, memory.LEAST_ADDRESS_SPACE)
    memory.require_address_space()
    limit_addresses(monkeypatch, 2**30)
    with pytest.raises(UserError, match=r"limited to 1\.1 GB, and compiling needs 1\.5 GB"):
        memory.require_address_space()
    limit_addresses(monkeypatch, resource.RLIM_INFINITY)
    memory.require_address_space()


def test_this_machine_tells_its_memory():
    assert memory.MEMINFO.is_file() == (memory.available_memory() is not None)


def test_too_large_is_one_sentence(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 10**9)
    memory.require_memory(3 * 10**9, "C", "fewer cells")
    with pytest.raises(UserError, match=r"C needs about 4\.0 GB of memory, but 3\.0 GB are free; "):
        memory.require_memory(4 * 10**9, "C", "fewer cells")


def test_where_nobody_knows_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    memory.require_memory(10**18, "C", "fewer cells")


def test_a_program_runs_again_in_the_memory_that_it_freed():
    # Compiled as for users: with the flags of the tests it runs several times as long.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def pages(how):
        command = [sys.executable, "-c", PAGES_OF_A_RUN, how]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return int(done.stdout)

    assert 10 * pages("keep") < pages("give back")
