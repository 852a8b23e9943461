"""Vocabularies that are missing, of another model or of a class that only the file names."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers
import transformers
from mutoscope_export.checkpoint.checkpoint import read_json
from mutoscope_export.checkpoint.tokenizer import load_tokenizer, refuse_other_vocabulary, settings_of, write_tokenizer
from mutoscope_export.checkpoint.validation import validated
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan import PIPELINES
from mutoscope_export.opening import open_checkpoint

from tests.export.spoiling import edit

PROMPT = "a red circle moving on the black square, café"
CLASSES = ["T5Tokenizer", "T5TokenizerFast", "AutoTokenizer", "PreTrainedTokenizerFast"]


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"]])
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_vocabulary_that_is_missing_is_refused_and_not_invented(
    wan_checkpoint: Path, tmp_path: Path, class_name: str, kept: list[str]
) -> None:
    for name in kept:
        shutil.copy(wan_checkpoint / "tokenizer" / name, tmp_path)
    with pytest.raises(
        ExportError, match=r"has no vocabulary: it needs tokenizer\.json.* Get the complete checkpoint again"
    ):
        load_tokenizer(tmp_path, f"transformers.{class_name}")


def test_a_checkpoint_without_its_tokenizer_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(ExportError, match="tokenizer has no vocabulary"):
        open_checkpoint(copy).tokenizer()


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [(256_300, 256_384), (32_100, 32_128), (32_000, 32_128), (94, 94), (168, 168)],  # UMT5, T5, T5 without extra ids
)
def test_an_embedding_may_have_rows_to_spare(tokens: int, rows: int) -> None:
    refuse_other_vocabulary(SimpleNamespace(get_vocab=lambda: {str(i): i for i in range(tokens)}), rows)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [(250_100, 256_384), (256_300, 250_112), (104, 256_384), (145, 94), (4, 94), (0, 94)],
)
def test_a_vocabulary_of_another_model_is_refused(tokens: int, rows: int) -> None:
    with pytest.raises(
        ExportError, match=f"tokenizer has {tokens} tokens, and .* embedding {rows} rows: they belong to dif"
    ):
        refuse_other_vocabulary(SimpleNamespace(get_vocab=lambda: {str(i): i for i in range(tokens)}), rows)


def test_the_vocabulary_is_held_against_the_embedding_of_the_checkpoint(copy: Path) -> None:
    tokenizer = open_checkpoint(copy).tokenizer()
    assert settings_of(tokenizer, copy / "tokenizer", rows=94).max_tokens == 64
    tokenizer.add_tokens([f"<new_{i}>" for i in range(51)])
    with pytest.raises(ExportError, match=r"tokenizer has 145 tokens, and .* embedding 94 rows"):
        settings_of(tokenizer, copy / "tokenizer", rows=94)


def test_a_tokenizer_that_cannot_pad_is_refused(wan_checkpoint: Path) -> None:
    tokenizer = open_checkpoint(wan_checkpoint).tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ExportError, match="no pad_token"):
        settings_of(tokenizer, wan_checkpoint / "tokenizer", rows=94)


@pytest.mark.parametrize("length", [0, -1, 64.0, "64", True])
def test_a_longest_prompt_that_is_no_length_is_refused(copy: Path, length: object) -> None:
    edit(copy / "tokenizer" / "tokenizer_config.json", lambda config: config.update(model_max_length=length))
    with pytest.raises(ExportError, match=rf"model_max_length .* is {length!r}; it must be an integer of at least 1"):
        open_checkpoint(copy)


def test_a_tokenizer_that_does_not_know_plain_english_is_refused(tmp_path: Path) -> None:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("圆", -3.0)]
    tokenizer = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    with pytest.raises(ExportError, match=r"does not know \d+ of the \d+ tokens of 'a red circle"):
        write_tokenizer(tokenizer, tmp_path / "tokenizer.json")


REBUILT = ["LlamaTokenizer", "GemmaTokenizer", "XLMRobertaTokenizer"]  # other ids than those of the file itself


@pytest.mark.parametrize("class_name", [*CLASSES, "TokenizersBackend", *REBUILT])
def test_a_class_of_transformers_gives_its_own_ids(
    copy: Path, wan_checkpoint: Path, tmp_path: Path, class_name: str
) -> None:
    edit(copy / "model_index.json", lambda index: index.update(tokenizer=["transformers", class_name]))
    # Without its family, which also asks whether the ids fit the text encoder: those of some classes do not.
    tokenizer = validated(copy, "copy", read_json(copy / "model_index.json"), PIPELINES["WanPipeline"], {}).tokenizer()
    expected = getattr(transformers, class_name).from_pretrained(wan_checkpoint / "tokenizer")
    assert tokenizer(PROMPT).input_ids == expected(PROMPT).input_ids
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (expected.pad_token_id, expected.model_max_length)
    write_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert written.encode(PROMPT).ids == expected(PROMPT).input_ids
    read = tokenizers.Tokenizer.from_file(str(wan_checkpoint / "tokenizer" / "tokenizer.json"))
    assert (written.encode(PROMPT).ids != read.encode(PROMPT).ids) == (class_name in REBUILT)


def test_for_a_class_that_transformers_lacks_the_serialized_vocabulary_is_read_as_it_is(
    copy: Path, wan_checkpoint: Path
) -> None:
    edit(copy / "model_index.json", lambda index: index.update(tokenizer=["transformers", "TokenizerOfTomorrow"]))
    read = tokenizers.Tokenizer.from_file(str(wan_checkpoint / "tokenizer" / "tokenizer.json"))
    assert open_checkpoint(copy).tokenizer()(PROMPT).input_ids == read.encode(PROMPT).ids


@pytest.mark.parametrize("name", ["BertModel", "models", "pipeline", "__dict__", ["T5Tokenizer"], None])
def test_what_transformers_has_and_is_no_tokenizer_is_refused(copy: Path, name: object) -> None:
    edit(copy / "model_index.json", lambda index: index.update(tokenizer=["transformers", name]))
    with pytest.raises(ExportError, match=r"the tokenizer of copy is .*; supported: .* any other tokenizer of trans"):
        open_checkpoint(copy)


def test_a_class_of_its_own_is_refused_without_a_serialized_vocabulary(copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.update(tokenizer=["transformers", "CLIPTokenizer"]))
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"'CLIPTokenizer'.*; supported: .* any other tokenizer .* with a tokenizer"):
        open_checkpoint(copy)


def test_no_code_of_a_tokenizer_runs(copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.update(tokenizer=["transformers", "AutoTokenizer"]))
    (copy / "tokenizer" / "evil.py").write_text("raise SystemExit('ran')")
    edit(
        copy / "tokenizer" / "tokenizer_config.json",
        lambda config: config.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    )
    with pytest.raises(ExportError, match="trust_remote_code"):
        open_checkpoint(copy).tokenizer()


@pytest.fixture(scope="module")
def sentencepiece_vocabulary(wan_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with spiece.model, trained on a few lines, in place of tokenizer.json."""
    folder = tmp_path_factory.mktemp("spiece")
    model = io.BytesIO()
    letters = "".join(map(chr, range(33, 127)))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT, "the quick brown fox jumps over the lazy dog", letters] * 20),
        model_writer=model, vocab_size=100, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    shutil.copy(wan_checkpoint / "tokenizer" / "tokenizer_config.json", folder)
    return folder


@pytest.mark.parametrize("class_name", ["T5Tokenizer", "T5TokenizerFast", "AutoTokenizer"])
def test_a_vocabulary_of_sentencepiece_gives_the_ids_of_sentencepiece(
    sentencepiece_vocabulary: Path, class_name: str
) -> None:
    tokenizer = load_tokenizer(sentencepiece_vocabulary, f"transformers.{class_name}")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_vocabulary / "spiece.model"))
    assert tokenizer(PROMPT).input_ids == [*reference.encode(PROMPT), 1]


def test_the_remedy_for_a_class_that_nothing_names_is_the_configuration(
    sentencepiece_vocabulary: Path, tmp_path: Path
) -> None:
    shutil.copy(sentencepiece_vocabulary / "spiece.model", tmp_path)
    with pytest.raises(
        ExportError, match=r"tokenizer_config\.json, which names the class, is missing: get the complete checkpo"
    ):
        load_tokenizer(tmp_path, "transformers.AutoTokenizer")


@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "spiece.model"])
def test_tokens_that_a_class_adds_without_its_configuration_are_not_called_another_model(
    copy: Path, sentencepiece_vocabulary: Path, vocabulary: str
) -> None:
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    if vocabulary == "spiece.model":
        (copy / "tokenizer" / "tokenizer.json").unlink()
        shutil.copy(sentencepiece_vocabulary / vocabulary, copy / "tokenizer")
    with pytest.raises(
        ExportError, match=r"tokenizer/tokenizer_config\.json is missing, and without it the class adds"
    ):
        open_checkpoint(copy)


def test_the_remedy_for_a_missing_sentencepiece_is_sentencepiece(
    sentencepiece_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ExportError, match=r"To read spiece\.model, run: pip install sentencepiece$"):
        load_tokenizer(sentencepiece_vocabulary, "transformers.T5Tokenizer")


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_vocabulary_that_is_a_pointer_of_git_lfs_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(ExportError, match=rf"{name} is a Git LFS pointer .*git lfs pull"):
        load_tokenizer(tmp_path, "transformers.T5Tokenizer")
