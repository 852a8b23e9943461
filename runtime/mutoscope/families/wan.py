"""Wan: how its reference cleans a prompt and counts latent frames."""

from __future__ import annotations

import html
import re

from ..bundle.manifest import Geometry


def clean_prompt(text: str) -> str:
    """Mends Unicode, resolves HTML entities (twice, for those escaped twice) and folds white space.

    Source: `prompt_clean` of Diffusers' `WanPipeline`.
    """
    import ftfy

    mended: str = ftfy.fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(mended)).strip()).strip()


def latent_frames(num_frames: int, temporal_scale: int) -> int:
    """The first frame has a latent of its own, each further `temporal_scale` frames share one."""
    return (num_frames - 1) // temporal_scale + 1


def frame_counts(geometry: Geometry) -> range:
    """Every T of which the latent frames fill whole patches, up to the length of the rotary tables."""
    scale, patch = geometry.vae_scale_factor_temporal, geometry.patch_size[0]
    first = scale * (patch - 1) + 1
    return range(first, first + scale * patch * geometry.max_patches, scale * patch)
