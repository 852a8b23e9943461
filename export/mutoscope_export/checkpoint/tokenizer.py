"""The tokenizer of a checkpoint: loaded as its pipeline loads it, validated, and written for the runtime.

Knows tokenizer files, transformers' classes and the `tokenizers` library. Knows nothing of prompts or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import ExportError
from .stored_weights import refuse_link_to_nothing, refuse_pointer

SERIALIZED, SENTENCEPIECE, CONFIG = "tokenizer.json", "spiece.model", "tokenizer_config.json"
READS_SERIALIZED = "transformers.PreTrainedTokenizerFast"  # any tokenizer.json, as it is written

_PLAIN_ENGLISH = "a red circle moving right on a black background"
_PROBES = ("", _PLAIN_ENGLISH, "Café  “quoted” ﬁsh\n漢字 🙂 </s> <pad>")
_MOST_UNUSED_ROWS = 1023  # embeddings are filled up to a multiple of a power of two; UMT5 has 84 rows without a token


def class_that_loads(name: str) -> str | None:
    """The class, "library.Class", for a tokenizer whose index names a class of transformers.

    A class of transformers may build its normalizer anew from the vocabulary, and gives other ids than the file. Where
    transformers lacks the class, such as one that is newer, the file is read as it is written.

    Returns:
        None where transformers has something else of that name.
    """
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        return READS_SERIALIZED
    is_tokenizer = isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)
    return f"transformers.{name}" if is_tokenizer else None


def load_tokenizer(folder: Path, class_name: str) -> Any:
    """The tokenizer in a folder, by a class of a family's table or of `class_that_loads`, "library.Class".

    Raises:
        ExportError: its files are missing, or cannot be read. Classes of transformers make an empty vocabulary of
            missing files, without a word.
    """
    readable = (SERIALIZED,) if class_name == READS_SERIALIZED else (SERIALIZED, SENTENCEPIECE)
    found = [name for name in readable if (folder / name).is_file()]
    if not found:
        refuse_link_to_nothing(*(folder / name for name in readable))
        raise ExportError(
            f"{folder.name} has no vocabulary: it needs {' or '.join(readable)}. Get the complete checkpoint again"
        )
    for name in found:
        refuse_pointer(folder / name)
    library, name = class_name.split(".")
    try:
        return getattr(import_module(library), name).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # which one a damaged file raises is up to the libraries that read it
        raise ExportError(f"{folder.name} cannot be loaded: {error}. {_remedy(folder, found)}") from error


def _remedy(folder: Path, found: list[str]) -> str:
    if SERIALIZED not in found:
        try:
            import_module("sentencepiece")
        except ImportError:
            return f"To read {SENTENCEPIECE}, run: pip install sentencepiece"
    if not (folder / CONFIG).is_file():
        return f"{CONFIG}, which names the class, is missing: get the complete checkpoint again"
    return "Get the checkpoint again"


@dataclass(frozen=True)
class TokenizerSettings:
    """What the runtime must know of a tokenizer beside its file."""

    pad_token_id: int
    max_tokens: int  # of a text, by the tokenizer's own configuration


def settings_of(tokenizer: Any, folder: Path, rows: int) -> TokenizerSettings:
    """The settings of a tokenizer, once it is validated.

    Args:
        folder: that it was loaded from.
        rows: of the text encoder's embedding.

    Raises:
        ExportError: it cannot pad, says no length, or is not the text encoder's.
    """
    if tokenizer.pad_token_id is None:
        raise ExportError("the tokenizer has no pad_token, which is needed to pad prompts. Get the checkpoint again")
    longest = tokenizer.model_max_length
    if type(longest) is not int or longest < 1:  # a bool is an int
        raise ExportError(
            f"model_max_length of the tokenizer is {longest!r}; it must be an integer of at least 1. "
            f"Get {folder.name}/{CONFIG} again"
        )
    try:
        refuse_other_vocabulary(tokenizer, rows)
    except ExportError as error:
        if (folder / CONFIG).is_file():
            raise
        raise ExportError(
            f"{folder.name}/{CONFIG} is missing, and without it the class adds tokens of its own, so that the "
            "vocabulary does not fit the text encoder. Get the complete checkpoint again"
        ) from error
    return TokenizerSettings(tokenizer.pad_token_id, longest)


def refuse_other_vocabulary(tokenizer: Any, rows: int) -> None:
    """A vocabulary must fit the embedding that was trained with it.

    Args:
        rows: of the text encoder's embedding.

    Raises:
        ExportError: it has more tokens than the embedding has rows, or far fewer.
    """
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= rows - tokens <= min(_MOST_UNUSED_ROWS, rows // 8):
        raise ExportError(
            f"the tokenizer has {tokens} tokens, and the text encoder's embedding {rows} rows: they belong to "
            "different models. Get both from the same checkpoint"
        )


def write_tokenizer(tokenizer: Any, destination: Path) -> None:
    """Writes what the `tokenizers` library reads, and checks that it gives the same ids.

    Raises:
        ExportError: the tokenizer is of another kind or does not know plain English, or the written one differs.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        kind = type(tokenizer).__name__
        raise ExportError(
            f"the tokenizer is a {kind}, which the `tokenizers` library cannot read. "
            f"Export a checkpoint that has {SERIALIZED}"
        )
    written = Tokenizer.from_str(backend.to_str())
    written.no_padding()
    written.no_truncation()
    destination.write_bytes(written.to_str(pretty=True).encode())
    written = Tokenizer.from_buffer(destination.read_bytes())
    for text in _PROBES:
        expected, given = tokenizer(text).input_ids, written.encode(text).ids
        if expected != given:
            raise ExportError(
                f"{destination.name} gives {given} for {text!r}, and the checkpoint's tokenizer gives {expected}. "
                "Please report it with the version of transformers"
            )
    _refuse_unknown_words(tokenizer, written)


def _refuse_unknown_words(tokenizer: Any, written: Any) -> None:
    unknown = written.token_to_id("<unk>") if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    ids = written.encode(_PLAIN_ENGLISH).ids
    if unknown in ids:
        raise ExportError(
            f"the tokenizer does not know {ids.count(unknown)} of the {len(ids)} tokens of {_PLAIN_ENGLISH!r}: its "
            "vocabulary belongs to another model, or is damaged. Get the complete checkpoint again"
        )
