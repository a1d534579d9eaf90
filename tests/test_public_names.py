"""What the package offers by name, and what importing it costs."""

import subprocess
import sys

import pytest

import hypertrack_jax


def test_every_public_name_is_there():
    assert set(hypertrack_jax.__all__) == set(hypertrack_jax._MODULES)
    for name in hypertrack_jax.__all__:
        assert getattr(hypertrack_jax, name).__name__ == name


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hypertrack_jax' has no attribute 'loda_event'"):
        hypertrack_jax.loda_event  # noqa: B018


def test_events_do_without_jax():
    code = "import sys, hypertrack_jax; hypertrack_jax.load_event; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
