"""How a script ends that has done what it could, but not all."""

import sys

MAX_SHOWN = 10


def end_with(problems: list[str]) -> None:
    """Lists what went wrong, if anything did, and ends the script with status 1."""
    if problems:
        rest = [f"and {len(problems) - MAX_SHOWN} more"] if problems[MAX_SHOWN:] else []
        told = (f"\nerror: {len(problems)} events were left out:", *problems[:MAX_SHOWN], *rest)
        print(*told, sep="\n", file=sys.stderr)
        sys.exit(1)
