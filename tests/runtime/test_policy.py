"""A product's own rules, in the command line and as a function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mutoscope import RequestError, VideoRequest
from mutoscope.cli import main
from mutoscope.policy import UNSAID, PolicyError, ask, load_policy

RULES = """
def policy(request):
    if "secret" in request.prompt:
        return "this house makes no secret videos"

def broken(request):
    raise KeyError(request.prompt)

def odd(request):
    return False

number = 7
"""
REQUEST = VideoRequest(prompt="a secret circle")


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"rules_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    return name


def test_a_refusal_gives_its_reason_and_nothing_is_made(rules: str, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "a secret circle", "-o", "out.mp4", "--policy", f"{rules}.policy"]) == 2
    assert "refused: this house makes no secret videos" in capsys.readouterr().err
    assert not Path("out.mp4").exists()


def test_what_the_rules_allow_is_made(rules: str):
    small = ["--height", "32", "--width", "32", "--num-frames", "1", "--num-inference-steps", "1"]
    assert main(["generate", "a circle", "-o", "out.png", "--policy", f"{rules}.policy", *small]) == 0
    assert Path("out.png").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("policy", "must be a dotted name"),
        (".policy", "must be a dotted name"),
        ("no_such_module.policy", "cannot be imported: ModuleNotFoundError"),
        ("{}.none", "cannot be imported: AttributeError"),
        ("{}.number", "is not a function; it is of type int"),
    ],
)
def test_rules_that_cannot_be_asked_are_refused(name: str, message: str, rules: str):
    with pytest.raises(RequestError, match=message):
        load_policy(name.format(rules))


@pytest.mark.parametrize(("name", "message"), [("broken", "failed with KeyError"), ("odd", "returned bool")])
def test_rules_that_fail_allow_nothing(name: str, message: str, rules: str):
    with pytest.raises(RequestError, match=message) as caught:
        ask(load_policy(f"{rules}.{name}"), REQUEST)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("answer", "message"), [("no", "refused: no"), ("  ", f"refused: {UNSAID}")])
def test_a_refusal_is_an_error_of_its_own(answer: Any, message: str):
    with pytest.raises(PolicyError, match=message):
        ask(lambda _: answer, REQUEST)


def test_without_rules_and_without_a_reason_everything_is_allowed():
    ask(None, REQUEST)
    ask(lambda _: None, REQUEST)
