"""Compiled programs on disk: the next process loads them, and nothing about them ends a run."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache

from hypertrack_jax import compilation
from hypertrack_jax.compilation import (
    ProgramFiles,
    default_cache,
    forget_programs_if_many,
    use_compilation_cache,
)

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from hypertrack_jax.compilation import use_compilation_cache

use_compilation_cache(sys.argv[1])
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
print(jax.jit(lambda x: jnp.sort(x @ x)[0, 0])(jnp.eye(8)))
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def run(directory) -> list[str]:
    """What a process says that compiles a program: its result, what it loaded, what it wrote."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_what_one_process_compiled_the_next_one_loads_also_beside_damage(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert first[:2] == ["0.0", "0"] and int(first[2]) > 0
    assert second == ["0.0", first[2], "0"]
    damaged = sorted(tmp_path.iterdir())
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    assert run(tmp_path) == first
    assert run(tmp_path) == second


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:9] + b"\0" * 9])
def test_a_damaged_program_is_none_and_goes(tmp_path, damage):
    store = ProgramFiles(tmp_path / "programs")
    store.put("key", b"of a program that is whole")
    (path,) = store._path.iterdir()
    assert store.get("key") == b"of a program that is whole"
    path.write_bytes(damage(path.read_bytes()))
    assert store.get("key") is None
    assert not path.exists()
    assert store.get("key") is None


def test_programs_not_read_for_longest_make_room(tmp_path, monkeypatch):
    store = ProgramFiles(tmp_path)
    for age, key in enumerate("abcd"):
        store.put(key, bytes(96))
        os.utime(tmp_path / key, (1000 - age, 1000))
    (tmp_path / ".c.npz.7").write_bytes(bytes(96))  # what another process is writing
    monkeypatch.setattr(compilation, "LARGEST_STORE", 250)
    ProgramFiles(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", ".c.npz.7"}


def test_a_program_that_another_process_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    ProgramFiles(tmp_path).put("kept", bytes(96))
    monkeypatch.setattr(
        Path, "iterdir", lambda self, found=Path.iterdir: [*found(self), self / "gone"]
    )
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert ProgramFiles(tmp_path).get("kept") == bytes(96)


@pytest.fixture
def restored():
    """Puts back what a test does to jax."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    store = compilation_cache.get_file_cache
    yield
    compilation_cache.get_file_cache = store
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("restored")
def test_a_directory_that_cannot_be_made_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    use_compilation_cache(tmp_path / "file" / "programs")
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        assert jax.jit(lambda x: 3 * x)(jnp.ones(3)).sum() == 9


@pytest.mark.usefixtures("restored")
def test_a_full_disk_costs_a_warning(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(ProgramFiles, "put", full)
    use_compilation_cache(tmp_path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with pytest.warns(UserWarning, match="no space left"):
        assert jax.jit(lambda x: 5 * x)(jnp.ones(3)).sum() == 15


def test_the_default_is_in_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(default_cache()) == "/elsewhere/hypertrack_jax/programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(default_cache()) == "/home/somebody/.cache/hypertrack_jax/programs"


def test_programs_are_dropped_before_the_system_refuses_them(tmp_path, monkeypatch, caplog):
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    program = jax.jit(lambda x: jnp.sort(x @ x))
    program(jnp.eye(8))
    assert not forget_programs_if_many()
    limit = tmp_path / "max_map_count"
    limit.write_text(str(mappings()))
    monkeypatch.setattr(compilation, "_MOST_MAPPINGS", limit)
    # Nothing was compiled since the last look.
    assert not forget_programs_if_many()
    jax.jit(lambda x: jnp.cos(x @ x))(jnp.eye(8))
    before = mappings()
    limit.write_text(str(2 * before))
    assert not forget_programs_if_many()
    jax.jit(lambda x: jnp.sin(x @ x))(jnp.eye(8))
    assert forget_programs_if_many(0.4)
    assert mappings() < before
    assert "sysctl -w vm.max_map_count=262144" in caplog.text
    assert program(jnp.eye(8)).sum() == 8
    monkeypatch.setattr(compilation, "_MAPPINGS", tmp_path / "none")
    assert not forget_programs_if_many()
