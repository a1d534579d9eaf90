"""The flagfiles of the published scenarios: every flag is known, every value is allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "train": "train.py",
    "inference": "inference.py",
    "technical": "inference.py",
    "pre": "inference.py",
    "pretrain": "pretrain_voxdyn.py",
}
FILES = sorted((ROOT / "experiments" / "flags").glob("*.flags"))


def test_every_scenario_has_its_file():
    stems = {path.stem for path in FILES}
    for rfactor in ("0p01", "0p1", "0p3"):
        for name in ("train_tune-5_{}", "inference_tune-5_{}", "inference_tune-5_{}_cut"):
            assert name.format(rfactor) in stems
        assert f"pre_only_{rfactor}" in stems
    assert {"technical_tune-5_0p5", "technical_tune-5_1p0", "pretrain_hyper"} <= stems


@pytest.mark.parametrize("script", sorted(set(SCRIPTS.values())))
def test_the_flags_are_the_scripts_own(script):
    """All files of a script in one process, which parses them and runs nothing."""
    files = [str(path) for path in FILES if SCRIPTS[path.stem.split("_")[0]] == script]
    assert files
    program = (
        "import sys, importlib\n"
        f"sys.path.insert(0, {str(ROOT / 'experiments')!r})\n"
        f"importlib.import_module({script[:-3]!r})\n"
        "from absl import flags\n"
        "for path in sys.argv[1:]:\n"
        "    flags.FLAGS.unparse_flags()\n"
        "    flags.FLAGS(['script', f'--flagfile={path}'])\n"
        "    print(path, 'parsed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.count("parsed") == len(files)
