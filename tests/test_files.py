"""Files: whole or not at all, and what killed writers and holders of locks leave."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hypertrack_jax import files
from hypertrack_jax.errors import UserError
from hypertrack_jax.files import locked, replace_file


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replace_file(tmp_path / "x") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from hypertrack_jax.files import replace_file
with replace_file(Path(sys.argv[1])) as file:
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writer(path: Path, program: str = WRITER) -> subprocess.Popen:
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    return writer


def write(path: Path) -> None:
    # As a new process would: this one has looked for abandoned files already.
    files._remove_abandoned.cache_clear()
    with replace_file(path) as file:
        file.write(b"whole")


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path):
    killed, alive = start_writer(tmp_path / "x.npz"), start_writer(tmp_path / "y.npz")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    foreign = [
        tmp_path / f".x.npz.{host}.1.01234567" for host in ("elsewhere", f"{files._host()}x")
    ]
    foreign += [tmp_path / f".x.npz.{files._host()}.1.backup", tmp_path / ".hidden"]
    for path in foreign:
        path.write_bytes(b"not ours")
    assert len(list(tmp_path.glob(f".x.npz.{files._host()}.{killed.pid}.*"))) == 1
    write(tmp_path / "z.npz")
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in foreign}
    (living,) = left - {"z.npz"}
    assert living.startswith(f".y.npz.{files._host()}.{alive.pid}.")
    assert alive.communicate("")[0] == "" and alive.returncode == 0
    assert (tmp_path / "y.npz").exists() and not (tmp_path / living).exists()


def test_without_locks_files_are_written_and_none_is_removed(tmp_path, monkeypatch):
    abandoned = tmp_path / f".x.{files._host()}.1.01234567"
    abandoned.write_bytes(b"half")
    monkeypatch.setattr(files, "fcntl", None)
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"whole" and abandoned.exists()
    monkeypatch.undo()
    write(tmp_path / "x")
    assert not abandoned.exists()


def test_a_file_removed_before_it_was_locked_is_begun_anew(tmp_path, monkeypatch):
    lock, removed = files._lock, []

    def remove_first(file):
        if not removed:
            (path,) = tmp_path.iterdir()
            path.unlink()
            removed.append(path)
        return lock(file)

    monkeypatch.setattr(files, "_lock", remove_first)
    with replace_file(tmp_path / "x") as file:
        file.write(b"whole")
    assert removed and (tmp_path / "x").read_bytes() == b"whole"


def test_a_lock_keeps_work_to_one_and_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "work" / "lock"
    with locked(path, "this work"):
        with pytest.raises(UserError, match=r"lock: another process is at this work; wait for its"):
            with locked(path, "this work"):
                pass
        with locked(tmp_path / "new" / "other" / "lock", "other work"):
            pass
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with pytest.raises(KeyboardInterrupt), locked(path, "this work"):
        (path.parent / "result").touch()
        raise KeyboardInterrupt
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")] == [
        *("new", "new/work", "new/work/result")
    ]


def test_a_lock_ends_with_its_process(tmp_path):
    program = WRITER.replace("replace_file", "locked").replace(")) as file", "), 'it') as file")
    holder = start_writer(tmp_path / "lock", program)
    with (
        pytest.raises(UserError, match="another process is at it"),
        locked(tmp_path / "lock", "it"),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with locked(tmp_path / "lock", "it"):
        pass
    assert list(tmp_path.iterdir()) == []
