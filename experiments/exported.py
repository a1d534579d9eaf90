"""Loads what export.py wrote: hits in, track labels out. Needs jax and NumPy, and nothing of ours.

label, membership = load("pu2.jaxexport")(hits)  # hits: [hit, 3], x, y, z in mm
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np


def load(path: str | Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function from hit positions in mm to the track of each hit (-1: none) and its membership.

    Raises `ValueError` if the file is damaged. The function raises it for a hit that is not finite,
    and for an event that is too large for the file.
    """
    content = Path(path).read_bytes()
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError(f"{path}: damaged, or not of export.py; write it anew.")
    exported = jax.export.deserialize(bytearray(content[:-4]))
    program, num_places = jax.jit(exported.call), exported.in_avals[0].shape[0]

    def reconstruct(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not np.isfinite(hits).all():
            raise ValueError("a hit position is not finite; remove such hits.")
        num_hits, is_overflow = len(hits), len(hits) >= num_places
        padded = np.zeros((num_places, 3), np.float32)
        if not is_overflow:
            padded[:num_hits] = hits
            found = program(padded, np.int32(num_hits))
            is_overflow = found["is_overflow"]
        if is_overflow:
            raise ValueError(
                f"an event of {num_hits} hits is too large for {path}; export with --num_hits."
            )
        return np.asarray(found["label"])[:num_hits], np.asarray(found["membership"])[:num_hits]

    return reconstruct
