"""Host side: what the stages of the check of an accelerator find, written at once."""

import contextlib
import datetime
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypertrack_jax.evaluation.tables import DASH, markdown_table
from hypertrack_jax.files import replace_file

Row = dict[str, Any]
"""Values by the titles of their columns."""


class Report:
    """Tables of stages, in a JSON file and as Markdown beside it; one process at a time writes."""

    def __init__(self, directory: Path):
        """A report in a directory, which may hold what other processes have found."""
        self.directory = directory
        self.path = directory / "accelerator.json"
        self.markdown_path = self.path.with_suffix(".md")
        self.failed: list[str] = []

    def read(self) -> dict[str, Any]:
        """The content so far: for each stage its rows, notes and state."""
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def begin(self, stage: str) -> None:
        """Empties the table of a stage, and says that it is running."""
        self._write(self.read() | {stage: {"rows": [], "notes": [], "state": "running"}})

    def add(self, stage: str, **row: Any) -> None:
        """Adds a row to the table of a stage."""
        found = self.read()
        found[stage]["rows"].append(row)
        self._write(found)

    def note(self, stage: str, line: str) -> None:
        """Adds a line below the table of a stage."""
        found = self.read()
        found[stage]["notes"].append(line)
        self._write(found)

    def end(self, stage: str, state: str) -> None:
        """Says how a stage ended."""
        found = self.read()
        found[stage]["state"] = state
        self._write(found)

    @contextlib.contextmanager
    def going_on(self, stage: str, what: str) -> Iterator[None]:
        """Notes an error in the block, and lets the stage go on with the next piece of work."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(what)
            told = (str(error).splitlines() or [""])[0]
            self.note(stage, f"{what} failed: {type(error).__name__}: {told}")

    def _write(self, found: dict[str, Any]) -> None:
        with replace_file(self.path) as file:
            file.write(json.dumps(found, indent=1).encode())
        with replace_file(self.markdown_path) as file:
            file.write(_markdown(found).encode())


def _markdown(found: dict[str, Any]) -> str:
    today = datetime.date.today().isoformat()
    parts = [f"# What an accelerator does, {today}"]
    for stage, of_stage in found.items():
        parts.append(f"## {stage}: {of_stage['state']}")
        rows = of_stage["rows"]
        if rows:
            titles = list(dict.fromkeys(title for row in rows for title in row))
            cells = [[_cell(row.get(title)) for title in titles] for row in rows]
            parts.append(markdown_table(titles, cells))
        parts += of_stage["notes"]
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)
