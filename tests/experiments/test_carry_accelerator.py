"""The folder that is carried to a machine with a card."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.carrying import Carried, carry, needed_wheels
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.store import load_event, save_event


@pytest.fixture
def carried(tmp_path):
    for number in (3, 4):
        save_event(tmp_path / "data", helix_event(0, 4, event_id=number))
    return Carried(tmp_path / "folder", tmp_path / "data", [4], 60.0)


def gather(place: Path) -> None:
    place.mkdir()
    (place / "one-1-py3-none-any.whl").write_bytes(bytes(10**6))


def test_the_folder_has_code_models_events_and_wheels(carried):
    size = carry(carried, gather)
    files = [file for file in carried.folder.rglob("*") if file.is_file()]
    assert size == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
    names = {file.relative_to(carried.folder).as_posix() for file in files}
    for name in ("hypertrack_jax/weights/positions.npz", "tests/test_device.py", "pyproject.toml"):
        assert name in names
    # The check has one model.
    assert sum(name.startswith("hypertrack_jax/weights/") for name in names) == 1
    assert not any("__pycache__" in name or "/results/" in name for name in names)
    assert [name for name in names if name.startswith("data/")] == ["data/event000000004.npz"]
    assert load_event(carried.folder / "data", 4).event_id == 4
    # The line runs scripts that are there.
    script = next(word for word in carried.command().split() if word.endswith("accelerator.py"))
    help_of = [sys.executable, script, "--help"]
    done = subprocess.run(help_of, cwd=carried.folder, capture_output=True, text=True)
    assert "--minutes" in done.stdout


def test_a_folder_that_is_too_large_is_not_left_behind(carried):
    with pytest.raises(UserError, match=r"wheels 1\.0\), more than --megabytes=2; take fewer ev"):
        carry(carried._replace(megabytes=2.0), gather)
    assert not carried.folder.exists()
    carried.folder.mkdir()
    with pytest.raises(UserError, match="is there already; remove it"):
        carry(carried, gather)
    assert carried.folder.exists()


def test_what_comes_with_jax_is_not_gathered():
    names = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flax", "jaxtyping")
    report = {"install": [{"metadata": {"name": name, "version": "1.2"}} for name in names]}
    assert needed_wheels(report) == ["flax==1.2", "jaxtyping==1.2"]
