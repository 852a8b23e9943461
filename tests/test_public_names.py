"""Tests use what others can use. Ruff's SLF001 refuses private attributes; this, the names that are given as text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# To be cleared: files that still name something private.
LEFT = (
    "bench/test_measuring.py", "benchmarks/test_peers.py", "engines/system/test_child_python.py",
    "export/demo/test_training.py", "export/quantization/test_quality.py", "export/test_cli.py",
    "export/test_export.py", "test_nothing_calls_home.py",
)  # fmt: skip
FILES = [path for path in sorted(TESTS.rglob("*.py")) if str(path.relative_to(TESTS)) not in LEFT]
OURS = ("mutoscope", "benchmarks")


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(code: str) -> list[str]:
    """Imported from our packages, or named to `monkeypatch`, with an underscore before them."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OURS):
            found += [name.name for name in node.names if is_private(name.name)]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr", "patch"):
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            found += [text for text in texts if isinstance(text, str) and is_private(text)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_names_nothing_private(path: Path) -> None:
    assert private_names(path.read_text()) == []


def test_such_names_would_be_found() -> None:
    code = (
        "from mutoscope.cli import _run, main\n"
        "monkeypatch.setattr(cli, '_run', 1)\nmonkeypatch.setattr('mutoscope.cli._run', 1)\n"
        "monkeypatch.setattr(cli, 'main', 1)\nmonkeypatch.setattr(Binding, '__exit__', 1)"
    )
    assert private_names(code) == ["_run", "_run", "mutoscope.cli._run"]
