"""What does not fit into memory is refused before it begins."""

import pytest

from hypertrack_jax import memory


def test_this_machine_has_memory():
    available = memory.available_memory()
    assert available is None or 10**7 < available < 10**14


def test_too_large_is_one_sentence(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 10**9)
    memory.require_memory(3 * 10**9, "C", "fewer cells")
    with pytest.raises(
        ValueError, match=r"C needs about 4\.0 GB of memory, but 3\.0 GB are free; "
    ):
        memory.require_memory(4 * 10**9, "C", "fewer cells")


def test_where_nobody_knows_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    memory.require_memory(10**18, "C", "fewer cells")
