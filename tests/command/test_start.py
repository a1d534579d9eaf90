"""The devices and directories that programs choose."""

import gc

import jax
import pytest

from hypertrack_jax import compilation, memory
from hypertrack_jax.command import start
from hypertrack_jax.errors import UserError


@pytest.fixture
def used(monkeypatch):
    """The directories that jax is told to keep programs in."""
    told = []
    monkeypatch.setattr(compilation, "use_compilation_cache", told.append)
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.append((name, value)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    return told


# What jax raises where the extra for GPUs is missing, and where it is there without a GPU.
@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_a_device_that_is_not_there_is_told(monkeypatch, error):
    def none():
        raise error

    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(UserError, match="--device=gpu: jax finds no such device"):
        start.choose_device("gpu")


def test_too_few_addresses_are_told_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (2**30, 2**30))
    with pytest.raises(UserError, match="the address space of this process is limited to"):
        start.choose_device("auto")


def test_programs_are_kept_where_the_user_says(used, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    start.keep_programs(None)
    start.keep_programs(str(tmp_path / "named"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "of jax"))
    start.keep_programs(None)
    default = tmp_path / "user" / "hypertrack_jax" / "programs"
    assert used == [default, str(tmp_path / "named"), str(tmp_path / "of jax")]
    start.keep_programs("")
    assert used[-1] == ("jax_enable_compilation_cache", False)


def test_a_directory_that_cannot_be_made_is_told_only_if_it_was_named(used, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    start.keep_programs(None)
    assert used == []
    with pytest.raises(OSError, match="file"):
        start.keep_programs(str(tmp_path / "file" / "x"))


def test_garbage_is_looked_for_rarely():
    before = gc.get_threshold()
    try:
        start.collect_garbage_rarely()
        assert gc.get_threshold()[0] == 10_000
    finally:
        gc.set_threshold(*before)
