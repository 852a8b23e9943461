"""The tables of docs/models.md are what the script makes, and its prose names what the tables have."""

from __future__ import annotations

from benchmarks.models_page import CHECKPOINTS, PAGE, page
from benchmarks.real_sizes import MODELS

TEXT = PAGE.read_text("utf-8")


def test_the_committed_tables_are_what_the_script_makes() -> None:
    assert page(TEXT) == TEXT


def test_every_model_is_on_the_page_with_its_names_and_a_command() -> None:
    assert {checkpoint.model for checkpoint in CHECKPOINTS} == set(MODELS)
    exported = [line for line in TEXT.splitlines() if line.startswith("mutoscope export ")]
    for checkpoint in CHECKPOINTS:
        name = checkpoint.names[0]
        assert f"/{name}-" in TEXT
        assert any(f"/{name}-" in line for line in exported)
