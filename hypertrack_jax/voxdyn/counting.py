"""Host side: C counted over a stream of events in bounded memory, resumable at any moment."""

import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.files import replace_file
from hypertrack_jax.voxdyn.connectivity import PackedPairs, merge_pairs, merge_runs

SPILL_PAIRS = 2**24
"""Pairs that wait in memory before they are merged into a file: 128 MB, and a few times that while
they merge."""
_FAN_IN = 4
"""Runs of similar length that become one."""
_MANIFEST = "manifest.json"
_RUN_NAME = re.compile(r"run(\d{5,})\.bin")


class _Run(NamedTuple):
    """A file of packed pairs, nothing else."""

    name: str
    num_pairs: int
    checksum: int
    """Of all bytes of the file."""


class PairCounter:
    """Counts of pairs of cells: the latest in memory, the others as sorted runs in a directory.

    Runs of similar length merge into one, so that there are few, each pair is merged
    O(log(number of events)) times, and together they take little more than C itself.

    A run counts once the manifest names it, and the manifest is replaced in one piece. A process
    that is killed at any moment therefore leaves a count that is right for the events it names.
    Counts are sums of integers, so neither the order of the events nor the cuts matter.
    """

    def __init__(self, directory: Path, settings: Mapping[str, object]):
        """Opens the count in `directory`, or begins one.

        Args:
          directory: made if it is not there; belongs to this count alone.
          settings: all that decides the counts but the events; anything that JSON can hold.

        Raises:
          ValueError: the directory holds a count with other settings, or a damaged one.
        """
        self.directory = directory
        self._settings = json.loads(json.dumps(dict(settings)))
        self._pending: list[PackedPairs] = []
        self._pending_events: set[int] = set()
        self._runs: list[_Run] = []
        self._stored_events: set[int] = set()
        if (directory / _MANIFEST).is_file():
            self._read_manifest()

    @property
    def counted(self) -> Collection[int]:
        """Events that have been counted."""
        return self._stored_events | self._pending_events

    def add(self, event_id: int, pairs: PackedPairs) -> None:
        """Adds the pairs of one event.

        Raises:
          ValueError: the event has been counted already.
          OSError: no space or no permission.
        """
        if event_id in self.counted:
            raise UserError(f"event {event_id} has been counted already; count each event once.")
        self._pending.append(pairs)
        self._pending_events.add(event_id)
        if sum(map(len, self._pending)) >= SPILL_PAIRS:
            self.flush()

    def flush(self) -> None:
        """Writes what is in memory, so that it survives the process."""
        if not self._pending_events:
            return
        runs = [*self._runs, self._write_run([merge_pairs(self._pending)])]
        self._name_runs(runs, self._stored_events | self._pending_events)
        self._pending, self._pending_events = [], set()
        while len(runs) >= _FAN_IN and runs[-_FAN_IN].num_pairs < 2 * runs[-1].num_pairs:
            merged = merge_runs([self._load_run(run) for run in runs[-_FAN_IN:]])
            runs = [*runs[:-_FAN_IN], self._write_run(merged)]
            self._name_runs(runs, self._stored_events)

    def merged(self) -> Iterator[PackedPairs]:
        """The pairs counted so far in ascending order, piece by piece; counting may go on after."""
        runs = [self._load_run(run) for run in self._runs]
        if self._pending:
            runs.append(merge_pairs(self._pending))
        return merge_runs(runs)

    def _read_manifest(self) -> None:
        path = self.directory / _MANIFEST
        try:
            manifest = json.loads(path.read_text())
            settings = dict(manifest["settings"])
            runs = [_Run(str(name), *map(int, numbers)) for name, *numbers in manifest["runs"]]
            events = {int(event) for event in manifest["events"]}
            if not all(_RUN_NAME.fullmatch(run.name) for run in runs):
                raise ValueError("a name that is none of ours")
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove {self.directory} and count anew."
            ) from error
        differing = sorted(
            name
            for name in settings.keys() | self._settings.keys()
            if settings.get(name) != self._settings.get(name)
        )
        if differing:
            name = differing[0]
            raise UserError(
                f"{self.directory} holds an unfinished count with {name}={settings.get(name)}, "
                f"but {name}={self._settings.get(name)} is asked for; finish it with its own "
                "settings, or remove the directory."
            )
        self._runs, self._stored_events = runs, events

    def _write_run(self, pieces: Iterable[PackedPairs]) -> _Run:
        """Writes a run, piece by piece; it counts once the manifest names it."""
        found = (_RUN_NAME.fullmatch(path.name) for path in self.directory.glob("run*.bin"))
        number = 1 + max((int(match[1]) for match in found if match), default=0)
        name, num_pairs, checksum = f"run{number:05d}.bin", 0, 0
        with replace_file(self.directory / name) as file:
            for piece in pieces:
                content = piece.tobytes()
                file.write(content)
                num_pairs, checksum = num_pairs + len(piece), zlib.crc32(content, checksum)
        return _Run(name, num_pairs, checksum)

    def _name_runs(self, runs: list[_Run], events: set[int]) -> None:
        """Puts these runs and events in the manifest, and removes the runs it no longer names."""
        manifest = {"settings": self._settings, "runs": runs, "events": sorted(events)}
        with replace_file(self.directory / _MANIFEST) as file:
            file.write(json.dumps(manifest).encode())
        self._runs, self._stored_events = runs, events
        named = {run.name for run in runs}
        for path in self.directory.glob("run*.bin"):
            if path.name not in named:
                path.unlink()

    def _load_run(self, run: _Run) -> PackedPairs:
        path = self.directory / run.name
        size = path.stat().st_size if path.is_file() else 0
        pairs = np.memmap(path, np.int64, "r") if size and size % 8 == 0 else np.zeros(0, np.int64)
        if size != 8 * run.num_pairs or zlib.crc32(pairs.data) != run.checksum:
            raise UserError(f"{path}: missing or damaged; remove {self.directory} and count anew.")
        return pairs
