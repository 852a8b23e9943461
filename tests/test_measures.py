"""Sizes, names, docstrings and the cost of an import, over the whole code. Parameters are counted by ruff."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime/mutoscope", "engines/mutoscope_engines", "export/mutoscope_export", "benchmarks/mutoscope_bench",
            "benchmarks/peers/mutoscope_peers")  # fmt: skip
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_FILE = 400
VAGUE = re.compile(r"(utils?|helpers?|managers?|common|misc)")  # names that fit anything

# Methods that classes of other libraries document, and ours override.
DOCUMENTED_ELSEWHERE = {
    "ArgumentParser": {"error", "print_help"},
    "Module": {"forward"},
    "Optimizer": {"step"},
}

EXECUTES_OR_ENCODES = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "av",
    "tokenizers",
}
MOST_IMPORT_S = 0.3
IMPORT = """
import json, sys, time
started = time.process_time()
import mutoscope
print(json.dumps([time.process_time() - started, sorted({name.partition(".")[0] for name in sys.modules})]))
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of the packages, by its name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


@cache
def documented_methods(name: str) -> frozenset[str]:
    """The methods of a class that have a docstring, in it or in a class that it derives from."""
    found = set(DOCUMENTED_ELSEWHERE.get(name, ()))
    for node in classes().get(name, ()):
        found |= {each.name for each in node.body if isinstance(each, Function) and ast.get_docstring(each)}
        bases = {bare_name(base) for base in node.bases} - {name}  # another library may have a class of that name
        found |= {method for base in bases for method in documented_methods(base)}
    return frozenset(found)


def bare_name(base: ast.expr) -> str:
    """Of `abc.ABC` "ABC", of `Sequence[int]` "Sequence"."""
    return ast.unparse(base).partition("[")[0].rpartition(".")[2]


def undocumented(owner: ast.Module | ast.ClassDef, inherited: frozenset[str] = frozenset()) -> Iterator[str]:
    """What has no leading underscore and no docstring, with its line. Overriding a documented method is enough."""
    for node in owner.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and node.name not in inherited:
            yield f"{node.lineno}: {node.name}"
        if isinstance(node, ast.ClassDef):
            of_bases = frozenset(method for base in node.bases for method in documented_methods(bare_name(base)))
            yield from undocumented(node, of_bases)


def test_there_is_something_to_measure() -> None:
    assert len(MODULES) > 150 and len(SCRIPTS) > 10 and len(TESTS) > 100


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        f"{relative(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in [*MODULES, *SCRIPTS]
        for node in ast.walk(parsed(path))
        if isinstance(node, Function)
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in [*MODULES, *SCRIPTS, *TESTS]}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FILE} == {}


def test_a_file_or_folder_is_named_after_what_is_in_it() -> None:
    names = {relative(path): path.relative_to(ROOT).with_suffix("").parts for path in [*MODULES, *SCRIPTS, *TESTS]}
    assert [name for name, parts in names.items() if any(VAGUE.fullmatch(part) for part in parts)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_says_what_it_is(package: str) -> None:
    found = {
        relative(path): list(undocumented(parsed(path))) for path in MODULES if path.is_relative_to(ROOT / package)
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_errors_are_listed_in_a_block_of_their_own() -> None:
    """As Google's style has it: `Raises:`, and a line for each."""
    prose = [
        f"{relative(path)}: {found[0]}"
        for path in [*MODULES, *SCRIPTS]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        and (found := re.search(r"\bRaises `?[A-Z]\w+", ast.get_docstring(node) or ""))
    ]
    assert prose == []


@pytest.fixture(scope="module")
def imports() -> list[tuple[float, set[str]]]:
    """Seconds on the processor of `import mutoscope`, and what is loaded then, in each of five new processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    found = []
    for _ in range(5):
        command = [sys.executable, "-c", IMPORT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seconds, modules = json.loads(done.stdout)
        found.append((seconds, set(modules)))
    return found


def test_importing_mutoscope_loads_nothing_that_executes_or_encodes(imports: list[tuple[float, set[str]]]) -> None:
    assert {name for _, modules in imports for name in modules} & EXECUTES_OR_ENCODES == set()


def test_importing_mutoscope_takes_less_than_a_blink(imports: list[tuple[float, set[str]]]) -> None:
    """The best of five, and of the processor's time alone: other programs' work can only add to it."""
    assert min(seconds for seconds, _ in imports) < MOST_IMPORT_S
