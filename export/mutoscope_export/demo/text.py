"""The built-in model's words: a tokenizer of the T5 kind for the grammar, and the configuration of its text encoder.

Words of the grammar are one token each; any other text falls to pieces of one character, and characters beyond ASCII to
one mark, so that every prompt can be encoded.
"""

from __future__ import annotations

import re
import string
from typing import Any

from transformers import T5Tokenizer

from .grammar import BACKGROUNDS, COLOURS, MOTIONS, PHRASINGS, SHAPES, SIZES

MAX_SEQUENCE_LENGTH = 64
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE = "▁"


def build_tokenizer() -> T5Tokenizer:
    """A Unigram tokenizer whose ids end with the end mark. Words of the grammar may begin with a capital."""
    sentences = [*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, *filter(None, SIZES), "and with the", *PHRASINGS]
    words = sorted(set(re.findall(r"[a-z]+", re.sub(r"{.*?}", "", " ".join(sentences)))))
    vocabulary = [(PAD, 0.0), (END, 0.0), (UNKNOWN, -20.0), *((SPACE + word, -1.0) for word in words)]
    vocabulary += [(SPACE + word.capitalize(), -1.0) for word in words]
    characters = SPACE + string.ascii_letters + string.digits + string.punctuation
    vocabulary += [(character, -10.0) for character in characters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH)


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
