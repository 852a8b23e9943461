"""What engines and the runtime say holds for every caller; the command line alone names its commands and flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OF_THE_COMMAND_LINE = ("cli.py", "terminal.py", "__main__.py", "commands/", "pyinstaller_hooks/", "server/recipes.py")
RUNTIME, ENGINES = ROOT / "runtime" / "mutoscope", ROOT / "engines" / "mutoscope_engines"
FILES = [path for folder in (RUNTIME, ENGINES) for path in sorted(folder.rglob("*.py"))]
OURS = [path for path in FILES if not str(path.relative_to(RUNTIME.parent.parent)).startswith(
    tuple(f"runtime/mutoscope/{name}" for name in OF_THE_COMMAND_LINE)
)]  # fmt: skip


def texts(path: Path) -> list[str]:
    """Every string of a file that is no docstring, f-strings as they are written."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def of_the_command_line(text: str) -> list[str]:
    others = re.sub(r"pip (un)?install( -+[a-z-]+)*", "", text)  # whose flags are pip's
    return re.findall(r"(?<![\w-])--[a-z][a-z-]+|`mutoscope [a-z-]+", others)


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_flag_and_no_command_of_the_command_line_is_named(path: Path) -> None:
    assert [found for text in texts(path) for found in of_the_command_line(text)] == []


@pytest.mark.parametrize(
    "text", ["lower --memory-limit", "see `mutoscope doctor`", "pip install x, then --backend", "use --tile HxW"]
)
def test_such_names_would_be_found(text: str) -> None:
    assert of_the_command_line(text)
    assert not of_the_command_line("run: pip install --force-reinstall --no-deps onnxruntime")
