"""Classifier-free guidance: how far it goes, when it works, and the weights of its branches. Knows numbers alone.

Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance" (arXiv 2207.12598), in the form of Diffusers, where
a scale of 1 is the network's own velocity.
"""

from __future__ import annotations

MAX_SCALE = 1000


def is_guided(scale: float) -> bool:
    """Whether a scale needs the negative prompt, and so a second branch."""
    return scale > 1


def guidance_weights(scale: float) -> tuple[float, ...]:
    """What each branch counts in the velocity: (negative, positive) with guidance, or (1,)."""
    return later_weights(scale) if is_guided(scale) else (1.0,)


def later_weights(scale: float) -> tuple[float, ...]:
    """The same in a later expert of a guided video, where a scale below 1 works too; at 1 a branch alone does."""
    return (1.0,) if scale == 1 else (1 - scale, scale)
