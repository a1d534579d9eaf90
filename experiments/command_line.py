"""What every script shares: how it starts, how it fails, and the flags that mean the same everywhere."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", ".", "Directory of data/, models/, runs/ and figs/.")


def run(main: Callable[[], None]) -> None:
    """Runs `main` under absl; a user's mistake becomes one sentence and exit status 2.

    The library raises `ValueError`, `ImportError` and `OSError` with a full sentence for what the
    user can mend; everything else is a defect and keeps its traceback. Ctrl-C exits with 130.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument {argv[1]!r}; flags start with --.")
        try:
            main()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except (ValueError, ImportError, OSError) as error:
            if "HYPERTRACK_TRACEBACK" in os.environ:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)


def workdir(*parts: str) -> Path:
    """Absolute path below `--workdir`."""
    return Path(WORKDIR.value).expanduser().absolute().joinpath(*parts)
