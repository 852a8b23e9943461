"""Small pictures: of a video while it is made and afterwards, and of what a client sent for it. Knows PyAV and Pillow.

All have a bounded number of pixels, whatever the video's size.
"""

from __future__ import annotations

import base64
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..output.destination import publish, remove, temporary_name
from ..output.frames import Frames
from ..pictures import Pixels

THUMBNAIL_PIXELS = 320  # of the longer side
SHEET_TILES = 16
TILE_PIXELS = 240

_FORMATS = {"webp": ("libwebp", "bgra", {"quality": "80"}), "jpeg": ("mjpeg", "yuvj420p", {"qmin": "3", "qmax": "3"})}


def preview(frames: Frames) -> dict[str, Any]:
    """The middle frame of uint8 `[F, h, w, 3]` as a data URL, with its size."""
    picture = frames[len(frames) // 2]
    image = base64.b64encode(_encoded(picture, "webp")).decode("ascii")
    return {"image": f"data:image/webp;base64,{image}", "height": picture.shape[0], "width": picture.shape[1]}


def write_thumbnail(video: Path, num_frames: int, target: Path) -> None:
    """The middle frame as WebP."""
    _write(target, _encoded(_frames(video, [num_frames // 2], THUMBNAIL_PIXELS)[0], "webp"))


def write_spritesheet(video: Path, num_frames: int, target: Path) -> None:
    """Up to 16 frames, evenly spaced in time, row by row in one JPEG."""
    count = min(SHEET_TILES, num_frames)
    tiles = _frames(video, [number * num_frames // count for number in range(count)], TILE_PIXELS)
    columns = math.isqrt(count - 1) + 1
    missing = np.zeros((-count % columns, *tiles.shape[1:]), np.uint8)
    rows = np.concatenate([tiles, missing]).reshape(-1, columns, *tiles.shape[1:])
    height, width = rows.shape[0] * rows.shape[2], columns * rows.shape[3]
    _write(target, _encoded(rows.transpose(0, 2, 1, 3, 4).reshape(height, width, 3), "jpeg"))


def shrunk(picture: Pixels) -> Pixels:
    """A picture or frame uint8 `[H, W, 3]` in the size of a thumbnail."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return np.array(image)


def write_small(pixels: Pixels, target: Path) -> None:
    """Pixels uint8 `[H, W, 3]` as WebP."""
    _write(target, _encoded(pixels, "webp"))


def _frames(video: Path, numbers: list[int], most_pixels: int) -> Frames:
    """Some frames of a file, uint8 `[n, h, w, 3]`, with even sides no longer than `most_pixels`."""
    import av

    found = []
    with av.open(f"file:{video}") as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in numbers:
                scale = min(1.0, most_pixels / max(frame.height, frame.width))
                height, width = (max(2, int(side * scale) // 2 * 2) for side in (frame.height, frame.width))
                found.append(frame.to_ndarray(format="rgb24", height=height, width=width))
    return np.stack(found)


def _encoded(picture: Frames, kind: str) -> bytes:
    """One picture `[h, w, 3]` as a whole file."""
    import av

    name, pixels, options = _FORMATS[kind]
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.options = pixels, options
    context.time_base = Fraction(1, 25)  # any: there is but one
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixels)
    return b"".join(bytes(packet) for each in (frame, None) for packet in context.encode(each))


def _write(target: Path, content: bytes) -> None:
    temporary = temporary_name(target)
    try:
        temporary.write_bytes(content)
        publish(temporary, target)
    finally:
        remove(temporary)
