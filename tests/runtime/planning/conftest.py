"""Jobs of a small bundle."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from mutoscope.conditions import load_conditions
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Job
from mutoscope.planning.planner import make_job
from mutoscope.request import RuntimeOptions, VideoRequest


@pytest.fixture
def job(make_bundle):
    """A job for a prompt, from the fields of the request and of the options; `bundle` changes the manifest."""

    def make(prompt: Any = "a red circle", *, bundle: dict[str, Any] | None = None, **given: Any) -> Job:
        # By name: what "auto" would pass over, and say so, depends on what is installed.
        options = {"backend": "onnxruntime"}
        options |= {name: given.pop(name) for name in [field.name for field in fields(RuntimeOptions)] if name in given}
        request = VideoRequest(prompt=prompt, **given)
        made = make_bundle(**bundle or {})
        execution = Execution.choose(RuntimeOptions(**options), made)
        return make_job(request, execution, made, load_conditions(made))

    return make
