"""Tests use what others can use. Ruff's SLF001 refuses private attributes; this, imports and names given as text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
TAKES_A_NAME = ("getattr", "setattr", "delattr", "patch", "object")  # the last of `mock.patch.object`
OURS = ("mutoscope", "benchmarks", "tests")


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(code: str) -> list[str]:
    """Imported from our packages, or given as text to what reads or replaces an attribute, with an underscore first."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OURS):
            imported = [f"{node.module}.{name.name}" for name in node.names]
            found += [name for name in imported if is_private(name)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in TAKES_A_NAME:
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            found += [text for text in texts if isinstance(text, str) and is_private(text)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_names_nothing_private(path: Path) -> None:
    assert private_names(path.read_text()) == []


def test_such_names_would_be_found() -> None:
    code = (
        "from mutoscope.cli import _run, main\nfrom mutoscope._cli import main\ngetattr(cli, '_run')\n"
        "monkeypatch.setattr(cli, '_run', 1)\nmonkeypatch.setattr('mutoscope.cli._run', 1)\n"
        "monkeypatch.setattr(cli, 'main', 1)\nmonkeypatch.setattr(Binding, '__exit__', 1)"
    )
    assert private_names(code) == [
        "mutoscope.cli._run", "mutoscope._cli.main", "_run", "_run", "mutoscope.cli._run",
    ]  # fmt: skip
