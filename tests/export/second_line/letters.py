"""The encoder of letters as a module to export: the second that reads the prompt."""

from __future__ import annotations

import torch
from mutoscope_export.graphs.trace import SymbolicValue
from torch import Tensor, nn

from .networks import LETTERS_PER_SOUND, DriftLetters

FEEDS = {"heard": "sound"}  # the output of this graph, and the input of the denoiser that it feeds


class LetterEncoder(nn.Module):
    """The graph of the second text encoder around the weights of `encoder`, in float32 in every precision."""

    def __init__(self, encoder: DriftLetters, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids` and `attention_mask` i64 `[B,N]` -> `heard` f32 `[B,D]`."""
        places = self.encoder.places(torch.arange(input_ids.shape[1]))
        heard = torch.tanh(self.encoder.letters(input_ids) + places) * attention_mask[..., None]
        out: Tensor = self.encoder.out(heard.sum(1) / LETTERS_PER_SOUND)
        return out


def inputs(encoder: DriftLetters) -> list[SymbolicValue]:
    """Name, dtype and shape of each input. The length of a text in letters has a symbol of its own."""
    return [("input_ids", "int64", ("B", "N")), ("attention_mask", "int64", ("B", "N"))]


def outputs(encoder: DriftLetters) -> list[SymbolicValue]:
    """The same of what it gives: one vector for each branch."""
    return [("heard", "float32", ("B", encoder.config.width))]


def examples(encoder: DriftLetters) -> list[dict[str, Tensor]]:
    """At several sizes, padded at the end."""
    made = []
    for seed, (branches, letters) in enumerate([(2, 9), (1, 4)]):
        torch.manual_seed(seed)
        ids = torch.randint(encoder.config.vocab_size, (branches, letters))
        made.append({"input_ids": ids, "attention_mask": (torch.arange(letters) < letters - 2).long().expand_as(ids)})
    return made


def own(encoder: DriftLetters) -> tuple[Tensor, Tensor]:
    """`heard` by this module, and by the encoder's own class."""
    example = examples(encoder)[0]
    return LetterEncoder(encoder)(**example), encoder(**example)
