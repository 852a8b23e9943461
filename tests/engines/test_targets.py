from __future__ import annotations

import pytest
from mutoscope_engines.errors import TargetError
from mutoscope_engines.targets import TARGETS, find_target


@pytest.mark.parametrize(
    ("name", "precisions"),
    [
        ("rtx20", ("fp16",)),  # Turing has no bfloat16
        ("rtx30", ("bf16", "fp16", "int8-static")),  # Ampere has no FP8
        ("sm80", ("bf16", "fp16", "int8-static")),
        ("rtx40", ("bf16", "fp16", "int8-static", "fp8")),  # Ada
        ("rtx50", ("bf16", "fp16", "int8-static", "fp8", "nvfp4")),  # Blackwell
        ("gb10", ("bf16", "fp16", "int8-static", "fp8", "nvfp4")),
    ],
)
def test_a_target_has_the_precisions_of_its_generation(name: str, precisions: tuple[str, ...]):
    assert find_target(name).precisions == precisions


def test_a_capability_that_has_a_name_is_that_target():
    assert find_target("sm89") is TARGETS["rtx40"]


def test_an_unknown_target_is_refused_with_the_nearest():
    with pytest.raises(TargetError, match=r"there is no target 'rtx4'; did you mean rtx40\? There are: rtx20"):
        find_target("rtx4")


@pytest.mark.parametrize("name", ["rtx10", "sm61", "sm", "sm089", "SM89", "cpu", ""])
def test_an_unknown_target_is_refused_with_those_there_are(name: str):
    with pytest.raises(TargetError, match="rtx20, rtx30, rtx40, rtx50, gb10, or smNN"):
        find_target(name)
