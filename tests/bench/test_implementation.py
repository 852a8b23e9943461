"""The work that a process is given, as JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from fractions import Fraction

import pytest
from mutoscope import Pipeline
from mutoscope_bench.implementation import Work


@pytest.mark.parametrize("fps", [8, 12.5, Fraction(24000, 1001)])
def test_the_plan_arrives_as_it_was_made(fps: object) -> None:
    with Pipeline.load() as pipeline:
        plan = pipeline.plan("a red circle moving right on a black background", fps=fps)
    unused = {field.name: None for field in fields(Work) if field.name not in ("kind", "plan")}
    work = Work(kind="clip", plan=json.loads(json.dumps(plan.to_dict())), **unused)
    assert work.planned() == plan
