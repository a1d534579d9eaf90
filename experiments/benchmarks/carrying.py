"""Host side: a folder with all that the check of an accelerator needs on another machine."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerator_inputs import MODEL
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.store import event_path

ROOT = Path(__file__).parents[2]
COPIED = ("hypertrack_jax", "experiments", "tests")
FOR_TESTS = ("pytest", "beartype")
OF_JAX = {"jax", "jaxlib", "numpy", "scipy", "ml-dtypes", "opt-einsum"}
"""Packages that are not gathered: jax, which is made for the card, and what comes with it."""
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
"""Versions of glibc in the names of wheels; pip takes them as they are."""


class Carried(NamedTuple):
    """What goes into the folder."""

    folder: Path
    data: Path
    """Directory of the events."""
    event_ids: Sequence[int]
    megabytes: float
    """Largest size of the folder."""

    def command(self) -> str:
        """The line that runs the check, to be typed where the folder lies."""
        install = "python3 -m pip install -q --no-index --no-deps --target=site wheels/*.whl"
        check = "python3 experiments/accelerator.py --workdir=. --output=found"
        return f"cd {self.folder.name} && {install} && PYTHONPATH=$PWD:$PWD/site {check}"


def carry(carried: Carried, gather: Callable[[Path], None]) -> float:
    """Makes the folder, with the one model that the check uses.

    Args:
      carried: what goes into it.
      gather: puts wheels into a directory.

    Returns:
      Its size in MB.

    Raises:
      UserError: the folder exists; or it is too large, and is removed again.
    """
    folder = carried.folder
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it, or choose another --output.")
    (folder / "data").mkdir(parents=True)
    try:
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for weights in (folder / "hypertrack_jax" / "weights").iterdir():
            if weights.stem != MODEL:
                weights.unlink()
        for number in carried.event_ids:
            _pack(event_path(carried.data, number), folder / "data")
        gather(folder / "wheels")
        parts = {part.name: _megabytes(part) for part in sorted(folder.iterdir())}
        size = sum(parts.values())
        if size > carried.megabytes:
            told = ", ".join(f"{name} {part:.1f}" for name, part in parts.items())
            raise UserError(
                f"the folder would have {size:.1f} MB ({told}), more than "
                f"--megabytes={carried.megabytes:g}; take fewer events."
            )
    except BaseException:
        shutil.rmtree(folder)
        raise
    return size


def gather_wheels(place: Path, python: str, at_hand: Sequence[str]) -> None:
    """Puts the wheels of our dependencies, and of theirs, into a directory.

    Args:
      place: the directory.
      python: version of Python that they are for.
      at_hand: requirements of the packages on the target machine, which the wheels must fit.

    Raises:
      UserError: pip finds no such wheels.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tags = ["any", *(f"manylinux_{glibc}_x86_64" for glibc in PLATFORMS), "manylinux2014_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    target += [f"--platform={tag}" for tag in tags]
    wanted = [*project["dependencies"], *FOR_TESTS, *at_hand]
    # pip would compare requires-python with the Python that it runs on.
    report = _pip("install", "--dry-run", "--ignore-installed", "--ignore-requires-python", *target,
                  f"--target={place}", "--report=-", *wanted)  # fmt: skip
    needed = needed_wheels(json.loads(report))
    _pip("download", "--no-deps", f"--dest={place}", *target, *needed)


def needed_wheels(report: dict[str, Any]) -> list[str]:
    """Names and versions in pip's report of an installation, without those of `OF_JAX`."""
    found = [(one["metadata"]["name"], one["metadata"]["version"]) for one in report["install"]]
    return [
        f"{name}=={version}"
        for name, version in sorted(found)
        if name.lower().replace("_", "-") not in OF_JAX
    ]


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise UserError(f"pip {arguments[0]} found no wheels: {' '.join(last)}")
    return done.stdout


def _pack(event: Path, directory: Path) -> None:
    """Copies an event, compressed to about half its size."""
    with (
        zipfile.ZipFile(event) as arrays,
        zipfile.ZipFile(directory / event.name, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in arrays.namelist():
            packed.writestr(name, arrays.read(name))


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
