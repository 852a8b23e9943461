"""The tables of the pages are what the script makes, and the prose of docs/models.md names what its tables have."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models_page import CHECKPOINTS, PAGE, TABLES, made_anew
from benchmarks.real_sizes import MODELS

TEXT = PAGE.read_text("utf-8")


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_the_committed_tables_are_what_the_script_makes(page: Path) -> None:
    assert made_anew(page) == page.read_text("utf-8")


def test_every_model_is_on_the_page_with_its_names_and_a_command() -> None:
    assert {checkpoint.model for checkpoint in CHECKPOINTS} == set(MODELS)
    exported = [line for line in TEXT.splitlines() if line.startswith("mutoscope export ")]
    for checkpoint in CHECKPOINTS:
        name = checkpoint.names[0]
        assert f"/{name}-" in TEXT
        assert any(f"/{name}-" in line for line in exported)
