"""The picture that a case gives to a bundle that takes one: drawn here, the same on every machine.

Knows pixels and what a bundle follows. Knows nothing of measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.bundle.conditionings import ImageConditioning
from mutoscope.bundle.manifest import Manifest
from mutoscope.output.frames import Frames
from PIL import Image

from .cases import UnmeasurableError

RED = (235, 50, 50)


def with_picture(request: Mapping[str, Any], manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The request, with a picture of the video's size to begin with, in a file in the folder.

    A bundle that needs two has the same at the end.

    Raises:
        UnmeasurableError: the bundle takes no picture.
    """
    about = next((each for each in manifest.conditionings if isinstance(each, ImageConditioning)), None)
    if about is None:
        raise UnmeasurableError("needs a bundle that takes a picture; `mutoscope inspect BUNDLE` lists what one takes")
    height, width = (request.get(name, getattr(manifest.defaults, name)) for name in ("height", "width"))
    file = folder / "picture.png"
    Image.fromarray(red_circle(height, width)).save(file)
    names = [about.name, *([about.last] if about.last_required and about.last else [])]
    return dict(request) | dict.fromkeys(names, str(file))


def red_circle(height: int, width: int) -> Frames:
    """A red circle in the left half of a black picture, uint8 `[H, W, 3]`; its edge is a pixel wide."""
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 3)
    inside = np.clip(min(height, width) / 6 - distance + 0.5, 0, 1)
    return np.rint(inside[..., None] * RED).astype(np.uint8)
