"""The last lines of every denoiser's graph: the solver's step, and what tells an overflow.

Knows the contract of the denoiser. Knows nothing of networks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def step(velocity: Tensor, state: Tensor, solver_a: Tensor, solver_b: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of the graph: `next_state` f32 `[K,C,F,h,w]`, and `velocity_peak` f32 `[]`.

    Args:
        velocity: f32 `[C,F,h,w]`, of all branches, summed with the weights of guidance.
        state: f32 `[K,C,F,h,w]`.
        solver_a: f32 `[K,K]`.
        solver_b: f32 `[K]`.
    """
    moved = solver_a @ state.flatten(1) + solver_b[:, None] * velocity.flatten()
    # A maximum may pass over NaN (ONNX leaves it open), so NaN is made infinite before it.
    peak = torch.where(torch.isnan(velocity), math.inf, velocity.abs()).max()
    return moved.view_as(state), peak
