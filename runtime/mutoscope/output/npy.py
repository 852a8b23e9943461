"""NumPy's own file: exact, uncompressed, without room for the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .frames import Frames, VideoHeader


def write(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """One array uint8 `[T, H, W, 3]`; the file's own header is written first."""
    with target.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": header.shape})
        for chunk in frames:
            file.write(chunk.data)
