"""What is a folder, what a hub id, and what neither."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope_export.checkpoint.location import locate
from mutoscope_export.errors import ExportError


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder where asking the hub fails the test."""

    def asked(*arguments: object, **options: object) -> None:
        pytest.fail("the hub was asked for a local path")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "wan").write_bytes(b"")
    (tmp_path / "models" / "wan.safetensors").write_bytes(b"")
    return tmp_path


ENDINGS = [
    "safetensors",
    "sft",
    "gguf",
    "onnx",
    "ckpt",
    "PT",
    "pth",
    "bin",
    "pkl",
    "pickle",
    "json",
    "zip",
    "tar.gz",
    "tar",
]


@pytest.mark.parametrize("name", ["models/wan", "models/wan.safetensors", *(f"else/x.{ending}" for ending in ENDINGS)])
def test_a_file_is_never_asked_for_on_the_hub(no_hub: Path, name: str) -> None:
    with pytest.raises(
        ExportError, match=rf"{name} .*file.*Single-file checkpoints and GGUF cannot be read.*model_index"
    ):
        locate(name)


@pytest.mark.parametrize("name", ["models/typo", "./typo", "../typo"])
def test_a_name_below_a_folder_that_exists_is_never_asked_for_on_the_hub(no_hub: Path, name: str) -> None:
    with pytest.raises(ExportError, match=rf"no folder {name}\. It is taken for a path, because \S+ exists here"):
        locate(name)


@pytest.mark.parametrize("name", ["typo", "a/b/c", "/nowhere/at/all", "a b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(no_hub: Path, name: str) -> None:
    with pytest.raises(ExportError, match=r"not a folder, and not a hub id such as"):
        locate(name)
    with pytest.raises(ExportError, match=r"not a folder, and not a hub id such as"):
        locate(Path("Some/Model"))


def test_an_unreachable_hub_gives_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ExportError, match=r"Some/Model .* no route to host.*download it elsewhere"):
        locate("Some/Model")
