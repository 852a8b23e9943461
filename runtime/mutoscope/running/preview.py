"""A cheap look at latents: one linear map to RGB, fitted at export. Knows nothing of models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Preview


def latents_to_rgb(latents: NDArray[np.float32], preview: Preview | None) -> NDArray[np.uint8] | None:
    """Latents `[C, F, h, w]` to uint8 `[F, h, w, 3]`, or `None` where the bundle has no map."""
    if preview is None:
        return None
    rgb: NDArray[np.float32] = np.einsum("cfhw,cr->fhwr", latents, np.asarray(preview.weights, np.float32))
    pixels: NDArray[np.uint8] = np.clip(np.rint(rgb + np.asarray(preview.bias, np.float32)), 0, 255).astype(np.uint8)
    return pixels
