"""What an installation holds."""

import zipfile
from pathlib import Path

from hatchling.build import build_wheel

ROOT = Path(__file__).parents[1]


def test_wheel_is_the_package_with_types_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        commands = wheel.read(entry_points).decode()
    assert "hypertrack = hypertrack_jax.command.main:main" in commands
    sources = (ROOT / "hypertrack_jax").rglob("*.py")
    assert names == {
        *(path.relative_to(ROOT).as_posix() for path in sources),
        "hypertrack_jax/py.typed",
        "hypertrack_jax/evaluation/event_page.js",
        "hypertrack_jax/weights/cells.npz",
        "hypertrack_jax/weights/pu2.npz",
        "hypertrack_jax/weights/positions.npz",
    }
