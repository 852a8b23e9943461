"""Wan: how its reference cleans a prompt and counts latent frames."""

from __future__ import annotations

import html
import re


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
