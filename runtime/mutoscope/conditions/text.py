"""Prompts into token ids. Knows tokenizers and padding. Knows nothing of what a model does with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import TOKENIZER, Bundle
from ..errors import BundleError, RequestError


@dataclass(frozen=True)
class Tokens:
    """Token ids `[B, L]` and their mask, both int64, one row a guidance branch."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens of each row are not padding."""
        return tuple(int(count) for count in self.attention_mask.sum(axis=1))


class Tokenizer:
    """The bundle's `tokenizer.json`, special tokens included."""

    def __init__(self, bundle: Bundle) -> None:
        import tokenizers

        try:
            # Not from its path, which the library takes as UTF-8 alone.
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(bundle.path(TOKENIZER).read_bytes())
        except Exception as error:  # the library raises a plain Exception
            raise BundleError(f"{TOKENIZER} of {bundle.root} cannot be read: {error}. Export it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pad_token_id = bundle.manifest.text.pad_token_id

    def encode(self, texts: Mapping[str, str], max_sequence_length: int) -> Tokens:
        """Tokenises and pads each text to the same length.

        Args:
            texts: one a row, by the name that the request has for it.

        Raises:
            RequestError: a text has more tokens than fit; nothing is cut off in silence.
        """
        input_ids = np.full((len(texts), max_sequence_length), self._pad_token_id, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, (name, text) in enumerate(texts.items()):
            ids = self._tokenizer.encode(text, add_special_tokens=True).ids
            if len(ids) > max_sequence_length:
                raise RequestError(
                    f"{name} has {len(ids)} tokens, end mark included; at most {max_sequence_length} fit. "
                    f"Shorten it by about {len(ids) - max_sequence_length}: {text[:60]!r}..."
                )
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return Tokens(input_ids, attention_mask)
