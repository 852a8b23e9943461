"""A checkpoint of the line with random weights, in the Diffusers layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from . import PIPELINES
from .networks import DriftDecoder, DriftLetters, DriftTransformer

TOKENS, LETTERS = 24, 70
_WORDS = "a red blue circle square moving right left on the black white background fast slowly , ."
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LETTERS = ("[UNK]", "[PAD]", *" ,.abcdefghijklmnopqrstuvwxyz")


def random_checkpoint(folder: Path, *, seed: int = 3) -> Path:
    """Writes it into `folder`, which it returns."""
    torch.manual_seed(seed)
    tokenizer, letters = _tokenizer(), _tokenizer_of_letters()
    text = BertConfig(
        vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=TOKENS,
    )  # fmt: skip
    parts = {
        "tokenizer": tokenizer,
        "tokenizer_2": letters,
        "text_encoder": _randomised(BertModel(text)),
        "text_encoder_2": _randomised(DriftLetters(len(letters), LETTERS)),
        "transformer": _randomised(DriftTransformer(), gain=1.6),
        "vae": _randomised(DriftDecoder(), gain=0.7),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0),
    }
    index = {"_class_name": "DriftPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        (known,) = PIPELINES["DriftPipeline"][name]
        index[name] = known.rsplit(".", 1)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *_WORDS.split()))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=TOKENS
    )


def _tokenizer_of_letters() -> PreTrainedTokenizerFast:
    letters = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(_LETTERS)}, "[UNK]"))
    letters.normalizer = normalizers.Lowercase()
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LETTERS
    )


def _randomised(module: nn.Module, gain: float = 1.0) -> nn.Module:
    """Every weight is random and large enough to matter; matrices multiply the size of what they read by `gain`."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = "LayerNorm.weight" in name
            parameter.normal_(float(norm), 0.2 if parameter.ndim == 1 else gain * parameter[0].numel() ** -0.5)
    return module.eval()
