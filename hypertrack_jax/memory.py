"""Host side: refuses work that this machine's memory cannot hold, before it begins."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where nobody can say."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(limits) if limits else None


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raises a `ValueError` where `needed` bytes are not to be had.

    Linux promises memory that it does not have and kills who uses it; so this asks first.

    Args:
      needed: bytes.
      what: the work, for the message.
      remedy: what the user can choose instead of more memory.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB are "
            f"free; choose {remedy}, or a machine with more memory."
        )
