"""The options of pytest: a test that crashes its process fails the run, and does not hang it."""

import subprocess
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_a_crashed_process_fails_the_run(tmp_path):
    for number in range(6):
        crash = "os.abort()" if number == 2 else "pass"
        test = f"import os\ndef test_one(): pass\ndef test_two(): {crash}\ndef test_three(): pass"
        (tmp_path / f"test_{number}.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-c", str(PYPROJECT), "-n", "2", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "test_2.py::test_two" in done.stdout and "crashed" in done.stdout
