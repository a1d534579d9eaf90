"""Strict modes for every test, and the shapes in annotations checked by beartype."""

import gc
import os
import platform
import signal
import tempfile
from importlib.metadata import version

# Before jax starts: two CPU devices, so that code for several devices is tested on one machine; and
# programs compiled quickly rather than well, in about a quarter of the time, unless
# HYPERTRACK_TEST_PROGRAMS is set: then a card computes what it computes for users.
flags = ["--xla_force_host_platform_device_count=2"]
if "HYPERTRACK_TEST_PROGRAMS" not in os.environ:
    flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    # In one piece: to part a small program for several cores takes more than it wins.
    flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    # XLA ends a process that gives it a flag it does not know; jaxlib 0.11 took this one away.
    if platform.machine() == "x86_64" and version("jaxlib").startswith("0.10."):
        flags += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

# As the scripts have it, see `quiet_xla` of hypertrack_jax/command/start.py.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Many tests start scripts, which compile the same programs: all processes share what was compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Tracing makes many objects that live. Looking for garbage after every 700 of them takes a tenth of
# the tests' time.
gc.set_threshold(100_000)

# A shell has its background jobs ignore Ctrl-C, which the scripts started here would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from jaxtyping import install_import_hook

install_import_hook(["hypertrack_jax", "benchmarks", "studies"], "beartype.beartype")

import jax
import pytest

from hypertrack_jax.compilation import forget_programs_if_many, use_compilation_cache

use_compilation_cache(os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "float32")
# A random key that is used twice is an error.
jax.config.update("jax_debug_key_reuse", True)

from hypertrack_jax.networks import continuations
from hypertrack_jax.reconstruction import capacities

# Toy events are a tenth of the smallest real ones, and should not be padded to their size.
capacities.LEAST_HITS = 192
if "HYPERTRACK_TEST_PROGRAMS" not in os.environ:
    # A loop for each width of rows takes long to compile; test_continuations.py has several.
    continuations.LEAST_WIDTH = 512

# Behind the settings above, which it takes over.
from hypertrack_jax.reconstruction import candidates

candidates.LEAST_PAIRS = 8192


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """One process runs many files of tests, whose programs together would crash it."""
    yield
    # Early: every worker has its own.
    forget_programs_if_many(0.5)
