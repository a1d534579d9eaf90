"""The processes of a script: they work, and end with it."""

import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
WAITING = f"""
import sys, time

def work(number):
    print("at work", flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    sys.path.insert(0, {str(EXPERIMENTS)!r})
    from hardware import map_in_processes
    with map_in_processes(work, [1, 2], 2) as done:
        list(done)
"""


def test_the_processes_of_a_killed_script_end_with_it(tmp_path):
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    # All of them hold the pipe, which ends with the last.
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
    process.kill()
    assert process.communicate(timeout=300)[0] == ""
