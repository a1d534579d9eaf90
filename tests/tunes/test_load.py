"""Tunes by name and from a user's file."""

import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.tunes import dense, helix, local, tune_5
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.tunes.tune import Tune, VoxdynTune

FILE = """
from dataclasses import replace

from hypertrack_jax.tunes.tune import VoxdynTune
from hypertrack_jax.tunes.tune_5 import TUNE as PUBLISHED

TUNE = replace(PUBLISHED, name="mine", voxdyn=VoxdynTune(ncell=1024))
"""


def test_packaged_tunes_by_name():
    assert load_tune("tune-5") is tune_5.TUNE
    assert load_tune("helix") is helix.TUNE
    assert load_tune("local") is local.TUNE
    assert load_tune("dense") is dense.TUNE
    assert set(PACKAGED) == {"tune-5", "helix", "local", "dense", "dense-cells"}


@pytest.mark.parametrize("is_below_home", [False, True])
def test_a_file_by_its_path(tmp_path, monkeypatch, is_below_home):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = "~/mine.py" if is_below_home else str(tmp_path / "mine.py")
    assert load_tune(path) == Tune("mine", voxdyn=VoxdynTune(ncell=1024))


@pytest.mark.parametrize("param", ["tune5", "nowhere/mine.py", "", "."])
def test_neither_name_nor_file(param):
    with pytest.raises(
        UserError, match=r"packaged tune \(tune-5, helix, local, dense, dense-cells\) nor"
    ):
        load_tune(param)


@pytest.mark.parametrize("text", ["", "TUNE = {'name': 'mine'}"])
def test_a_file_without_a_tune(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.py: the file defines no TUNE of type Tune"):
        load_tune(str(path))
