"""A LoRA on the command line is a file, and a strength after its last colon where that is one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from mutoscope import Lora, RequestError, VideoRequest
from mutoscope.codec import as_text, from_text
from mutoscope.values.loras import parse_lora

(FIELD,) = (field for field in fields(VideoRequest) if field.name == "loras")


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.5", Lora("a.safetensors", 0.5)),
        ("a.safetensors:-2", Lora("a.safetensors", -2.0)),
        ("there:0.5", Lora("there:0.5")),
        ("there:0.5:0.25", Lora("there:0.5", 0.25)),
        (r"C:\a.safetensors", Lora(r"C:\a.safetensors")),
        ("there:half", None),
        ("a.safetensors:nan", None),
        ("", None),
    ],
)
def test_what_exists_under_the_whole_text_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, lora: Lora | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there", "there:0.5"):
        (tmp_path / name).touch()
    assert parse_lora(text) == lora
    if lora is None:
        with pytest.raises(ValueError, match=r"must be FILE or FILE:STRENGTH, with a number such as .*:0\.8; got"):
            from_text(FIELD, object, text)
    else:
        assert from_text(FIELD, object, as_text(FIELD, [lora])) == lora


def test_any_path_names_a_file() -> None:
    assert Lora(Path("a") / "b").path == str(Path("a") / "b")


def test_json_has_objects_and_refuses_everything_else() -> None:
    request = VideoRequest.from_dict({"prompt": "a", "loras": [{"path": "b", "strength": 0.5}, {"path": "c"}]})
    assert request.loras == (Lora("b", 0.5), Lora("c"))
    assert VideoRequest.from_dict(request.to_dict()) == request
    assert "loras" not in VideoRequest(prompt="a").to_dict()
    for given in ("b", ["b"], [{"path": 3}], [{"path": "b", "stregth": 0.5}], [{"strength": 1}]):
        with pytest.raises(RequestError, match="loras must be a list of objects such as"):
            VideoRequest.from_dict({"prompt": "a", "loras": given})
