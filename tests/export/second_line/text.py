"""BERT as a module to export: the layers of `transformers.BertModel` written out, and zeros in place of padding."""

from __future__ import annotations

import torch
from mutoscope_export.graphs.trace import SymbolicValue
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

FEEDS = {"hidden": "context"}  # the output of this graph, and the input of the denoiser that it feeds


class TextEncoder(nn.Module):
    """The graph of the text encoder around the weights of `encoder`, in float32 whatever the network's type is."""

    def __init__(self, encoder: BertModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embeddings, self.layers = encoder.embeddings, encoder.encoder.layer
        self.heads = encoder.config.num_attention_heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids` and `attention_mask` i64 `[B,S]` -> `hidden` f32 `[B,S,D]`."""
        table = self.embeddings
        places = table.position_embeddings(torch.arange(input_ids.shape[1]))
        hidden = table.word_embeddings(input_ids) + table.token_type_embeddings.weight[0] + places
        hidden = table.LayerNorm(hidden)
        hides = torch.where(attention_mask[:, None, None] == 0, torch.finfo(torch.float32).min, 0.0)
        for layer in self.layers:
            attention = layer.attention.self
            query, key, value = (
                project(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for project in (attention.query, attention.key, attention.value)
            )
            weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + hides).softmax(-1)
            mixed = layer.attention.output.dense((weights @ value).transpose(1, 2).flatten(2))
            hidden = layer.attention.output.LayerNorm(hidden + mixed)
            inner = layer.output.dense(F.gelu(layer.intermediate.dense(hidden)))
            hidden = layer.output.LayerNorm(hidden + inner)
        return hidden * attention_mask[..., None]


def inputs(encoder: BertModel) -> list[SymbolicValue]:
    """Name, dtype and shape of each input. The manifest calls the length of a text S in this line."""
    return [("input_ids", "int64", ("B", "S")), ("attention_mask", "int64", ("B", "S"))]


def outputs(encoder: BertModel) -> list[SymbolicValue]:
    """The same of what it gives."""
    return [("hidden", "float32", ("B", "S", encoder.config.hidden_size))]


def examples(encoder: BertModel) -> list[dict[str, Tensor]]:
    """At several sizes, padded at the end."""
    made = []
    for seed, (branches, tokens) in enumerate([(2, 7), (1, 3)]):
        torch.manual_seed(seed)
        lengths = torch.randint(1, tokens + 1, (branches, 1))
        ids = torch.randint(encoder.config.vocab_size, (branches, tokens))
        made.append({"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths).long()})
    return made


def own(encoder: BertModel) -> tuple[Tensor, Tensor]:
    """`hidden` by this module, and by transformers."""
    example = examples(encoder)[0]
    expected = encoder(**example).last_hidden_state * example["attention_mask"][..., None]
    return TextEncoder(encoder)(**example), expected
