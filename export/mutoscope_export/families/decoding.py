"""Decodes latents with the modules of a checkpoint's decoder, called as the runtime calls their graphs.

Knows the roles of the decode stage and how caches pass from call to call. Knows nothing of any model line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from mutoscope.bundle.contract import DECODE, stage_of
from torch import Tensor, nn

from .family import GraphSource

_FIRST, _NEXT = "_first", "_next"  # what a role ends with: for the first call of a video, and for the others


def decode(sources: Sequence[GraphSource], model: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames of a clip, call by call, in float32.

    Args:
        sources: at least those of the decode stage.
        model: the component that all of them are made from, loaded.
        chunks: latents f32 `[1, C, n, h, w]` of each call, as the denoiser leaves them.

    Returns:
        u8 `[T, H, W, 3]` for each of them.
    """
    modules = {each.role: each.module(model, torch.float32) for each in sources if stage_of(each.role) == DECODE}
    for role in modules:
        if role.endswith(_FIRST):
            chunks = _called(modules[role], modules[role.removesuffix(_FIRST) + _NEXT], chunks)
    yield from chunks


def _called(first: nn.Module, following: nn.Module, given: Iterable[Tensor]) -> Iterator[Tensor]:
    caches: tuple[Tensor, ...] = ()
    for index, value in enumerate(given):
        made = (following if index else first)(value, *caches)
        result, *kept = made if isinstance(made, tuple) else (made,)
        caches = tuple(kept)
        yield result
