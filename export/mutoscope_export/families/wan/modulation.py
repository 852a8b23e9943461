"""How the time of a step scales and shifts the hidden states of Wan's transformer.

Knows where `WanTransformer3DModel` adds the time embedding to its tables. Knows nothing of what else a block does.
Letters as in `denoiser`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Modulation:
    """One time for all tokens, so that it enters each layer normalization as its weight and bias."""

    def __init__(self, time: Tensor, projected: Tensor) -> None:
        """
        Args:
            time: the embedding, `[1,E]`.
            projected: what it adds in each block, `[6 E]`.
        """
        self.time, self.projected = time, projected

    def of_block(self, table: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of self-attention, and those of the feed-forward, from a `table` `[1,6,E]`."""
        return (table.flatten() + self.projected).chunk(6)

    def last(self, table: Tensor) -> tuple[Tensor, ...]:
        """Shift and scale before the last projection, from their `table` `[1,2,E]`."""
        return (table[0] + self.time).flatten().chunk(2)

    def norm(self, hidden: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        """`hidden` `[1,(B S),E]`, normed, scaled and shifted."""
        return F.layer_norm(hidden, (hidden.shape[-1],), 1 + scale, shift, eps)

    def gate(self, added: Tensor, gate: Tensor) -> Tensor:
        """What a layer adds to the hidden states, `[1,(B S),E]`, times its gate."""
        return added * gate


class FrameModulation(Modulation):
    """A time for each latent frame.

    Hidden states are seen as `[B,f,(y x),E]` meanwhile, from before the norm, so that it is fused with what follows.
    Each of these sizes is said: of one that is left to follow from the others, TensorRT-RTX only knows that it is at
    most as large as all of them together, and takes memory for that.
    """

    def __init__(self, time: Tensor, projected: Tensor, rows: tuple[int, int, int]) -> None:
        """
        Args:
            time: the embeddings, `[f,E]`.
            projected: what they add in each block, `[f (6 E)]`.
            rows: B, f, and the tokens of a frame.
        """
        super().__init__(time, projected)
        self.rows = rows

    def of_block(self, table: Tensor) -> tuple[Tensor, ...]:
        return (table + self.projected.reshape(-1, *table.shape[1:])).flatten(1).chunk(6, dim=1)

    def last(self, table: Tensor) -> tuple[Tensor, ...]:
        return (table + self.time[:, None]).flatten(1).chunk(2, dim=1)

    def norm(self, hidden: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        normed = F.layer_norm(self._by_frame(hidden), (hidden.shape[-1],), eps=eps)
        return self._in_a_row(normed * (1 + scale)[:, None] + shift[:, None])

    def gate(self, added: Tensor, gate: Tensor) -> Tensor:
        return self._in_a_row(self._by_frame(added) * gate[:, None])

    def _by_frame(self, hidden: Tensor) -> Tensor:
        return hidden.reshape(*self.rows, hidden.shape[-1])

    def _in_a_row(self, hidden: Tensor) -> Tensor:
        branches, frames, tokens = self.rows
        return hidden.reshape(1, branches * frames * tokens, hidden.shape[-1])
