"""Host side: `metrics.jsonl`, the numbers of a training run as lines of JSON."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from hypertrack_jax.files import replace_file

METRICS_FILE = "metrics.jsonl"
"""Name of the file in the log directory of a run."""
VALIDATION_AUC = "validation_auc"
"""The number in the lines of validations; other lines are of training."""


class MetricsFile:
    """Appends lines such as `{"step": 9, "loss": 1.5}`; a killed run loses none of them."""

    def __init__(self, directory: Path, first_step: int):
        """Opens the file and removes the lines of steps that the run is about to repeat.

        Args:
          directory: where the file lies or will lie.
          first_step: first step of this run. It has so many updates behind it, so a validation at
            this step stays.

        Raises:
          OSError: the file cannot be written.
        """
        path = directory / METRICS_FILE
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = list(_lines_before(first_step, lines))
            if kept != lines:
                with replace_file(path) as file:
                    file.writelines(kept)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a line. Numbers that are not finite become `null`, since JSON has none such."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | finite) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _lines_before(first_step: int, lines: list[bytes]) -> Iterator[bytes]:
    """The whole lines of earlier steps; a killed process may have left a part of one."""
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        is_kept = values["step"] < first_step + (VALIDATION_AUC in values)
        if is_kept and line.endswith(b"\n"):
            yield line
