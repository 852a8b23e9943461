"""Prompts into token ids, and these into what the denoiser takes. Knows tokenizers, padding and cleaning. Knows nothing
of what a model does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mutoscope_engines.session import Host
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..bundle.conditionings import TextConditioning
from ..bundle.manifest import Defaults
from ..errors import BundleError, RequestError
from ..values import checks
from .base import Condition, Fact, Settled, UseGraphs, VideoSize
from .cleaning import CLEANINGS


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids `[B, L]` and their mask, both int64, one row a guidance branch."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens of each row are not padding."""
        return tuple(int(count) for count in self.attention_mask.sum(axis=1))


class Tokenizer:
    """A tokenizer file of the bundle, special tokens included."""

    def __init__(self, bundle: Bundle, about: TextConditioning) -> None:
        import tokenizers

        try:
            # Not from its path, which the library takes as UTF-8 alone.
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(bundle.path(about.tokenizer).read_bytes())
        except Exception as error:  # the library raises a plain Exception
            raise BundleError(f"{about.tokenizer} of {bundle.root} cannot be read: {error}. Export it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pad_token_id = about.pad_token_id
        self._encoder = f" for the {about.role}" if len(bundle.manifest.texts) > 1 else ""

    def encode(self, texts: Mapping[str, str], max_sequence_length: int) -> Tokens:
        """Tokenizes and pads each text to the same length.

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
                    f"{name} has {len(ids)} tokens{self._encoder}, end mark included; at most {max_sequence_length} "
                    f"fit. Shorten it by about {len(ids) - max_sequence_length}: {text[:60]!r}..."
                )
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return Tokens(input_ids, attention_mask)


class TextCondition(Condition):
    """A prompt, and with guidance the one that is steered away from: one row each, the negative one first.

    Where the bundle names no negative one, both branches see the prompt. Several encoders may read the same text, each
    with a tokenizer, a cleaning and a length of its own.
    """

    def __init__(self, about: TextConditioning, bundle: Bundle) -> None:
        if about.cleaning not in CLEANINGS:
            raise BundleError(
                f"the bundle needs the text cleaning {about.cleaning!r} for its {about.name}, and this version of "
                f"Mutoscope does not have it; it has: {', '.join(CLEANINGS)}. Install a newer Mutoscope"
            )
        self._about = about
        self._clean = CLEANINGS[about.cleaning]
        self._tokenizer = Tokenizer(bundle, about)
        texts = bundle.manifest.texts
        self._longest = max(text.max_sequence_length for text in texts)  # for any encoder
        number = 1 + [text for text in texts if text.name == about.name].index(about)  # among those that read it
        self._counted_as = f"{about.name}_tokens" + (f"_{number}" if number > 1 else "")
        # A plan says the text from which all encoders make what they read, so that it makes the same video again.
        self._tells_cleaned = len({text.cleaning for text in texts}) == 1

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        about = self._about
        given = getattr(request, about.name)
        said = checks.text(about.name, "" if given is None and not about.required else given)
        text = self._clean(said)
        if not text and about.required:
            raise RequestError(f'the {about.name} is empty; say what the video shows, for example "a red circle"')
        longest = checks.whole(
            "max_sequence_length",
            self._longest if request.max_sequence_length is None else request.max_sequence_length,
            minimum=1,
            maximum=self._longest,
        )
        length = min(longest, about.max_sequence_length)
        texts = {about.name: text}
        notes: tuple[str, ...] = ()
        facts: dict[str, Fact] = {about.name: text if self._tells_cleaned else said}
        if about.negative is not None:
            asked = getattr(request, about.negative)
            given = getattr(defaults, about.negative) if asked is None else asked
            said = checks.text(about.negative, given)
            negative = self._clean(said)
            if guided:
                texts = {about.negative: negative, **texts}
            elif asked:
                notes = (f"the {about.negative.replace('_', ' ')} is not used: guidance is off",)
            facts[about.negative] = (negative if self._tells_cleaned else said) if guided else ""
        tokens = self._tokenizer.encode(texts, length)
        facts |= {self._counted_as: tokens.counts[-1], "max_sequence_length": longest}
        feeds = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        if guided and about.negative is None:  # both branches see the same text
            feeds = {name: np.repeat(row, 2, axis=0) for name, row in feeds.items()}
        return Settled(feeds, {about.symbol: length}, facts, notes, about.roles)

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        (outputs,) = run(self._about.roles, [settled.feeds])
        return {name: outputs[output] for output, name in self._about.feeds.items()}
