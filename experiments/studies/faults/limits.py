"""Scripts without disk, home or memory: they end well or in one sentence; no file is half done."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

from studies.faults.toy_work import RANGE, copied, run, script, sentence_of, train

COMMANDS: tuple[Callable[[Path], list[str]], ...] = (
    lambda w: script(w, "process_data", f"--input={w / 'csv'}"),
    lambda w: script(w, "pretrain_voxdyn", "--ncell=48", *RANGE),
    lambda w: train(w, "limited", 8),
    lambda w: script(w, "inference", "--read_tag=tiny", f"--submission_dir={w / 'out'}", *RANGE),
)


def full_disk(workdir: Path, number: int) -> str:
    """No file may become larger than 256 bytes to 512 KiB, as on a disk that fills up."""
    size = 2 ** (8 + number // len(COMMANDS) % 12)
    return limited(workdir, number, resource.RLIMIT_FSIZE, size)


def little_memory(workdir: Path, number: int) -> str:
    """The address space is limited to 1 to 6.5 GiB."""
    size = 2**29 * (2 + number // len(COMMANDS) % 12)
    return limited(workdir, number, resource.RLIMIT_AS, size)


def limited(workdir: Path, number: int, what: int, size: int) -> str:
    """Runs a script under a limit, and then without, which has to work."""

    def limit() -> None:
        resource.setrlimit(what, (size, resource.RLIM_INFINITY))

    _, command = chosen(workdir, number)
    first = sentence_of(run(command, preexec_fn=limit))
    second = run(command)
    if second.returncode:
        return f"wrong: after it, status {second.returncode}: {second.stderr[-300:]}"
    return first


def no_home(workdir: Path, number: int) -> str:
    """Neither HOME nor a directory for caches."""
    homes = ({}, {"HOME": "/nonexistent"}, {"HOME": ""})
    without = {name: value for name, value in os.environ.items() if name != "HOME"}
    without.pop("XDG_CACHE_HOME", None)
    without.pop("JAX_COMPILATION_CACHE_DIR", None)
    _, command = chosen(workdir, number)
    ended = sentence_of(run(command, env=without | homes[number // len(COMMANDS) % 3]))
    return ended if ended == "right" else f"wrong: {ended}"


def place_taken(workdir: Path, number: int) -> str:
    """A file is in the place of a directory that has to be made."""
    place, command = chosen(workdir, number)
    names = ("data", "models", "models/limited", "out")
    taken = place / names[number % len(COMMANDS)]
    if taken.is_dir():
        taken.rename(taken.with_name(f"{taken.name} aside"))
    taken.write_text("in the way")
    ended = sentence_of(run(command))
    return ended if ended == "refused" else f"wrong: {ended}"


def chosen(workdir: Path, number: int) -> tuple[Path, list[str]]:
    """A fresh work directory, and the command that this try runs in it."""
    index = number % len(COMMANDS)
    needs = (("csv",), ("data",), ("data", "models", "tiny.py"), ("data", "models"))[index]
    place = copied(workdir, workdir / "limited", *needs)
    return place, COMMANDS[index](place)
