"""A VAE's encoder that is fed a whole clip: its graphs in a bundle, and a backend that tells what it was fed."""

from __future__ import annotations

from typing import Any

import numpy as np
from mutoscope.bundle.manifest import GraphTensor
from mutoscope_engines.testing import FakeBackend

from tests.bundles import Ends, tensors

_CACHE = (1, 2, "h", "w")


def encoder_ends(first_cache: tuple[Any, ...] = _CACHE) -> dict[str, Ends]:
    """Inputs and outputs of the graphs of the first and of every other call, with one cache between them."""
    first, following = (
        (GraphTensor(name="frames", dtype="float32", shape=(count, "8*h", "8*w", 3)),) for count in (1, 4)
    )
    condition = tensors(condition=(4, 1, "h", "w"))
    return {
        "vae_encoder_first": (first, condition + tensors(cache_0=first_cache)),
        "vae_encoder_next": (following + tensors(cache_0=_CACHE), condition + tensors(next_cache_0=_CACHE)),
    }


def counting() -> FakeBackend:
    """A backend whose encoder gives the mean of its frames, and in its cache how many calls there were."""
    backend = FakeBackend()

    def encoded(frames: Any, calls: Any, cache: str) -> dict[str, Any]:
        rows, columns = frames.shape[1] // 8, frames.shape[2] // 8
        condition = np.full((4, 1, rows, columns), frames.mean(), np.float32)
        return {"condition": condition, cache: np.full((1, 2, rows, columns), calls, np.float32)}

    backend.graphs |= {
        "vae_encoder_first": lambda *, frames: encoded(frames, 1, "cache_0"),
        "vae_encoder_next": lambda *, frames, cache_0: encoded(frames, cache_0[0, 0, 0, 0] + 1, "next_cache_0"),
    }
    backend.gives_zeros = True
    return backend
