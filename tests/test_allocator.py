"""Memory that was freed is used again without the system's help."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from hypertrack_jax.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

block = b"1" * 50_000_000
del block
before = page_faults()
block = b"1" * 50_000_000
print(page_faults() - before)
"""


def faults_of_a_second_block(mode: str) -> int:
    program = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than that of GNU")
def test_a_second_block_takes_no_new_pages_from_the_system():
    assert faults_of_a_second_block("leave") > 10_000
    assert faults_of_a_second_block("keep") < 100
