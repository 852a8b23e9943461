"""The frames of a video file, as FFmpeg decodes them. Knows nothing of how such files are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def decoded_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Each frame of the first video stream, uint8 `[H, W, 3]`.

    Raises:
        av.FFmpegError: FFmpeg cannot read or decode it.
        IndexError: it has no video stream.
    """
    import av

    with av.open(f"file:{path}") as container:  # a name may look like one of FFmpeg's protocols
        for frame in container.decode(container.streams.video[0]):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
