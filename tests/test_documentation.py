"""What the documents say of the code is true, where that can be checked."""

import ast
import re
from pathlib import Path

import mutoscope
import mutoscope.errors
import pytest
from mutoscope.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ROW = re.compile(r"^\W*(\w+Error)\W+(\d+)\b", re.MULTILINE)

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@every_document
def test_links_lead_to_files_that_are_there(document: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@every_document
def test_python_examples_parse_and_name_what_there_is(document: Path):
    for example in re.findall(r"```python\n(.*?)```", document.read_text("utf-8"), re.DOTALL):
        ast.parse(example)
        for name in re.findall(r"\bmutoscope\.([A-Z]\w+)", example):
            assert name in mutoscope.__all__


@every_document
def test_commands_are_those_of_the_command_line(document: Path):
    named = re.findall(r"(?:^ *|`|&& |-m )mutoscope ([a-z][\w-]*)", document.read_text("utf-8"), re.MULTILINE)
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("table", [mutoscope.errors.__doc__, (ROOT / "docs/embedding.md").read_text("utf-8")])
def test_every_error_is_listed_with_its_exit_code(table: str):
    errors = [getattr(mutoscope.errors, name) for name in mutoscope.errors.__all__]
    assert dict(ROW.findall(table)) == {
        error.__name__: str(error.exit_code) for error in errors if error is not mutoscope.errors.MutoscopeError
    }


def test_the_newest_version_of_the_changelog_is_this_one():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == mutoscope.__version__
