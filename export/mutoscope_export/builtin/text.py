"""The built-in model's words: a tokenizer of the T5 kind for the grammar, and the configuration of its text encoder.

Words of the grammar are one token each; any other text falls to pieces of one character, and unknown characters to one
mark, so that every prompt can be encoded.
"""

from __future__ import annotations

import re
import string
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .grammar import BACKGROUNDS, COLOURS, MOTIONS, PHRASINGS, SHAPES, SIZES

MAX_SEQUENCE_LENGTH = 64
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE = "▁"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer whose ids end with the end mark, as T5's do."""
    sentences = [*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, *(size for size in SIZES if size), "and with the", *PHRASINGS]
    words = sorted(set(re.findall(r"[a-z]+", re.sub(r"{.*?}", "", " ".join(sentences)))))
    pieces = [(SPACE + word, -1.0) for word in words]
    pieces += [(character, -10.0) for character in SPACE + string.ascii_lowercase + string.digits + string.punctuation]
    vocabulary = [(PAD, 0.0), (END, 0.0), (UNKNOWN, -20.0), *pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_SEQUENCE_LENGTH,
    )


def text_encoder_config(vocab_size: int) -> dict[str, Any]:
    """Arguments of `UMT5Config`."""
    return {
        "vocab_size": vocab_size,
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 256,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
