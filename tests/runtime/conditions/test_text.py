"""Tokens are those of transformers, clean prompts those of Diffusers."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope.bundle.bundle import TOKENIZER, Bundle
from mutoscope.conditions.cleaning import mend_unicode_and_html
from mutoscope.conditions.text import Tokenizer
from mutoscope.errors import BundleError, RequestError
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "",
    "a red circle moving right",
    "  two   spaces ",
    "naïve Füße",
    "日本語 と 🎬",
    "e\u0301 \u00e9",
    "a\u200bb\ufeff",
    "<pad> a </s>",
]
NASTY = [
    *TEXTS,
    "&lt;b&gt;",
    "&amp;lt;b&amp;gt;",
    "&amp;amp;lt;",
    "\t a \n\n b\u00a0\u3000c \r",
    "âœ” No problems",
    "schÃ¶n",
    "\u201cquoted\u201d \u2018single\u2019",
    "ﬁne",
    "\uff26\uff35\uff2c\uff2c",
    "\x00\x1b[31mred\x1b[0m",
    "&nbsp;x&nbsp;",
    "\ud800",
    "&#xD800;",
    "&notit; &",
]


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle, bundle.manifest.texts[0])


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_mask_are_those_of_transformers(make_bundle, tokenizer_json, text: str) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json), pad_token="<pad>", eos_token="</s>")
    expected = reference(text, padding="max_length", max_length=60, return_tensors="np")
    tokens = tokenizer_of(make_bundle()).encode({"prompt": text}, 60)
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int64
    np.testing.assert_array_equal(tokens.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(tokens.attention_mask, expected["attention_mask"])


def test_every_row_is_padded_to_the_same_length_with_the_pad_token_of_the_bundle(make_bundle) -> None:
    [prompt] = make_bundle().manifest.texts
    bundle = make_bundle(conditionings=(msgspec.structs.replace(prompt, pad_token_id=7),))
    tokens = tokenizer_of(bundle).encode({"negative_prompt": "", "prompt": "a red circle"}, 24)
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (2, 24)
    assert tokens.counts[0] == 1 and tokens.counts[1] > 3
    for ids, mask, count in zip(tokens.input_ids, tokens.attention_mask, tokens.counts, strict=True):
        assert mask.tolist() == [1] * count + [0] * (24 - count)
        assert (ids[count:] == 7).all()


def test_padding_and_truncation_in_the_file_change_nothing(make_bundle, tokenizer_json) -> None:
    import tokenizers

    bundle = make_bundle()
    expected = tokenizer_of(bundle).encode({"prompt": "a red circle"}, 24)
    other = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    other.enable_truncation(2)
    other.enable_padding(length=40)
    other.save(str(bundle.root / TOKENIZER))
    np.testing.assert_array_equal(
        tokenizer_of(bundle).encode({"prompt": "a red circle"}, 24).input_ids, expected.input_ids
    )


def test_a_text_is_never_cut_off(make_bundle) -> None:
    tokenizer = tokenizer_of(make_bundle())
    (count,) = tokenizer.encode({"prompt": "a red circle"}, 24).counts
    assert tokenizer.encode({"prompt": "a red circle"}, count).counts == (count,)
    with pytest.raises(
        RequestError, match=rf"negative_prompt has {count} tokens.*at most {count - 1} fit.*by about 1: 'a red circle'"
    ):
        tokenizer.encode({"negative_prompt": "a red circle"}, count - 1)


def test_a_damaged_tokenizer_is_refused(make_bundle) -> None:
    bundle = make_bundle()
    (bundle.root / TOKENIZER).write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json of .* cannot be read"):
        tokenizer_of(bundle)


@pytest.mark.parametrize("text", NASTY)
def test_prompts_are_cleaned_as_diffusers_cleans_them(text: str) -> None:
    assert mend_unicode_and_html(text) == prompt_clean(text)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text("&;#xlgtamp0123456789 \t\n\u00a0Ã¶é<>"))
def test_any_text_is_cleaned_as_diffusers_cleans_it(text: str) -> None:
    assert mend_unicode_and_html(text) == prompt_clean(text)
