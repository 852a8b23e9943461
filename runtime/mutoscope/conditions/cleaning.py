"""How prompts are cleaned before they are tokenized, by the name that a manifest gives it.

Knows text. Knows nothing of tokenizers or models.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable


def as_it_is(text: str) -> str:
    """The text, unchanged."""
    return text


def fold_spaces(text: str) -> str:
    """One space for each run of white space, none at the ends."""
    return re.sub(r"\s+", " ", text).strip()


def mend_unicode_and_html(text: str) -> str:
    """Mends Unicode, resolves HTML entities (twice, for those escaped twice) and folds white space.

    Source: `prompt_clean` of Diffusers' `WanPipeline`.
    """
    import ftfy

    mended: str = ftfy.fix_text(text)
    return fold_spaces(html.unescape(html.unescape(mended)).strip())


CLEANINGS: dict[str, Callable[[str], str]] = {
    "none": as_it_is,
    "spaces": fold_spaces,
    "ftfy-html-spaces": mend_unicode_and_html,
}
