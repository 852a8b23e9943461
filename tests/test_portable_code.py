"""Rules that keep the files the same on every system; no linter of ours knows them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("runtime", "engines", "export") for path in sorted((ROOT / folder).rglob("*.py"))]
NOT_KEPT = ("/proc", "os.devnull")


def text_writers(tree: ast.AST) -> Iterator[tuple[ast.Call, set[str | None]]]:
    """Calls of `write_text`, and of `open` in a text mode to write, with the names of their arguments."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        modes = [value.value for value in call.args[:2] if isinstance(value, ast.Constant)]
        to_write = any(isinstance(mode, str) and mode.strip("wax+") == "" and mode for mode in modes)
        if name == "write_text" or (name == "open" and to_write and ast.unparse(call.func) != "av.open"):
            yield call, {keyword.arg for keyword in call.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_written_with_its_encoding_and_line_ends_named(path: Path) -> None:
    """Windows has others, and hashes count."""
    lacking = [
        call.lineno
        for call, names in text_writers(ast.parse(path.read_text("utf-8")))
        if not {"encoding", "newline"} <= names and not any(text in ast.unparse(call) for text in NOT_KEPT)
    ]
    assert not lacking, f"{path}: lines {lacking}"


def test_the_rule_finds_what_it_should() -> None:
    found = text_writers(ast.parse("p.write_text(t)\np.open('w')\nopen(p, 'a', newline='')\np.open('rb')\np.open()\n"))
    assert [(call.lineno, names) for call, names in found] == [(1, set()), (2, set()), (3, {"newline"})]


def test_git_leaves_line_ends_as_they_are() -> None:
    """A bundle is known by the hashes of its bytes."""
    files = ["runtime/mutoscope/builtin/bundle/manifest.json", "runtime/mutoscope/builtin/bundle/tokenizer.json"]
    said = subprocess.run(["git", "check-attr", "text", *files], cwd=ROOT, capture_output=True, text=True)
    if said.returncode:
        pytest.skip("this is no checkout of git")
    assert said.stdout.count("text: unset") == len(files)
