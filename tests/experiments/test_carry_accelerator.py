"""The folder that is carried to a machine with a card."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from benchmarks import carrying
from benchmarks.carrying import Carried, carry, needed_wheels
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.model.weights import Weights, save_weights
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import NetworkTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path


@pytest.fixture
def carried(tmp_path):
    for number in (3, 4):
        save_event(tmp_path / "data", helix_event(0, 4, event_id=number))
    return Carried(tmp_path / "folder", tmp_path / "data", tmp_path / "models", [4], 60.0)


def gather(place: Path) -> None:
    place.mkdir()
    (place / "one-1-py3-none-any.whl").write_bytes(bytes(10**6))


def test_the_folder_has_code_models_events_and_wheels(carried):
    size = carry(carried, gather)
    files = [file for file in carried.folder.rglob("*") if file.is_file()]
    assert size == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
    names = {file.relative_to(carried.folder).as_posix() for file in files}
    for name in ("hypertrack_jax/weights/pu200.npz", "tests/test_device.py", "pyproject.toml"):
        assert name in names
    assert not any("__pycache__" in name or "/results/" in name for name in names)
    assert [name for name in names if name.startswith("data/")] == ["data/event000000004.npz"]
    assert load_event(carried.folder / "data", 4).event_id == 4
    # The line runs scripts that are there.
    script = next(word for word in carried.command().split() if word.endswith("accelerator.py"))
    help_of = [sys.executable, script, "--help"]
    done = subprocess.run(help_of, cwd=carried.folder, capture_output=True, text=True)
    assert "--minutes" in done.stdout


def test_a_model_takes_its_graph_constructor_along(carried, monkeypatch, tmp_path):
    network = NetworkTune("cylindrical", "helix", 1, 8, 5, (4,), num_attention_blocks=1)
    tune = Tune("small", voxdyn=VoxdynTune(ncell=64), network=network)
    voxdyn = fit_voxdyn([helix_event(1, 20)], 64, "hyper", num_iterations=1)
    parameters = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    alone = save_weights(tmp_path / "tiny.npz", Weights(tune, *parameters, count_pairs(voxdyn)))
    monkeypatch.setattr(carrying, "shipped_names", lambda: ["tiny"])
    monkeypatch.setattr(carrying, "shipped_path", lambda name: alone)
    save_voxdyn(voxdyn_path(carried.models, "hyper", 64), voxdyn)
    carry(carried, gather)
    whole = Reconstructor.load(carried.folder / "models" / "tiny.npz").voxdyn
    np.testing.assert_array_equal(whole.rows.columns, voxdyn.rows.columns)


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
