"""Which model a case runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope.builtin import bundle_path
from mutoscope_bench.case_model import Model, model_of
from mutoscope_bench.cases import CASES, DEFAULT_CLIP, UnmeasurableError
from mutoscope_bench.options import Options

CLIP, REAL = CASES[DEFAULT_CLIP], CASES["mlperf-text-to-video"]


def nothing(text: str) -> None:
    raise AssertionError(text)


def test_without_a_bundle_it_is_the_built_in_one_with_what_that_was_exported_from(tmp_path: Path) -> None:
    model = model_of(CLIP, Options(cases=(CLIP.name,)), tmp_path, nothing)
    assert model.bundle == bundle_path()
    assert model.checkpoint is not None and (model.checkpoint / "model_index.json").is_file()


def test_a_users_bundle_has_no_checkpoint_unless_it_is_named(tmp_path: Path) -> None:
    bundle, checkpoint = tmp_path / "bundle", tmp_path / "checkpoint"
    named = Options(cases=(CLIP.name,), bundle=bundle, checkpoint=checkpoint)
    assert model_of(CLIP, Options(cases=(CLIP.name,), bundle=bundle), tmp_path, nothing) == Model(bundle, None)
    assert model_of(CLIP, named, tmp_path, nothing) == Model(bundle, checkpoint)


def test_a_case_for_real_models_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(UnmeasurableError, match="needs a real model: mutoscope bench BUNDLE --case mlperf"):
        model_of(REAL, Options(cases=(REAL.name,)), tmp_path, nothing)
