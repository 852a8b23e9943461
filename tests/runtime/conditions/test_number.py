"""A number of the request is fed as it is, and refused where the model was not made for it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import NumberConditioning
from mutoscope.conditions import load_conditions
from mutoscope.errors import BundleError, RequestError
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Plan
from mutoscope.planning.planner import make_job
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces, tensors

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def conditioned(make_bundle: MakeBundle) -> MakeBundle:
    """A bundle whose denoiser is also told a number of the request."""

    def make(name: str, minimum: float, maximum: float, **changes: Any) -> Bundle:
        number = NumberConditioning(name=name, input="told", minimum=minimum, maximum=maximum)
        ends = interfaces()
        inputs, outputs = ends["denoiser"]
        ends["denoiser"] = (inputs + tensors(told=(1,)), outputs)
        texts = make_bundle().manifest.texts
        return make_bundle(conditionings=(*texts, number), graphs=graphs(ends), **changes)

    return make


def settled(bundle: Bundle, **asked: Any) -> tuple[Any, Plan]:
    """What the denoiser is told, and the plan."""
    execution = Execution.choose(RuntimeOptions(backend=FakeBackend({})), bundle)
    job = make_job(VideoRequest(prompt="a red circle", **asked), execution, bundle, load_conditions(bundle))
    condition, value = job.conditions[-1]

    def no_graph(role: str, feeds: Any) -> Any:
        raise AssertionError(f"a number ran the {role}")

    return condition.encode(value, no_graph)["told"], job.plan


@pytest.mark.parametrize(
    ("asked", "told", "fact"),
    [
        ({}, 8, 8),
        ({"fps": 24}, 24, 24),
        ({"fps": 12.5}, 12.5, "25/2"),
        ({"fps": Fraction(24000, 1001)}, 24000 / 1001, "24000/1001"),
        ({"fps": 1}, 1, 1),
        ({"fps": 60}, 60, 60),
    ],
)
def test_the_denoiser_is_told_the_frame_rate_as_one_float(
    conditioned: MakeBundle, asked: dict[str, Any], told: float, fact: Any
) -> None:
    fed, plan = settled(conditioned("fps", 1, 60), **asked)
    assert (fed.dtype, fed.shape) == (np.float32, (1,))
    assert fed[0] == np.float32(told)
    assert plan.conditions.facts["fps"] == fact
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_default_that_is_a_ratio_is_told_too(conditioned: MakeBundle) -> None:
    fed, plan = settled(conditioned("fps", 1, 60, defaults={"fps": "30000/1001"}))
    assert fed[0] == np.float32(30000 / 1001)
    assert plan.geometry.fps == Fraction(30000, 1001)


def test_any_number_that_has_a_default_may_be_told(conditioned: MakeBundle) -> None:
    fed, plan = settled(conditioned("height", 16, 64), height=np.int64(64))
    assert (fed.tolist(), plan.to_dict()["height"]) == ([64.0], 64)


@pytest.mark.parametrize("fps", [61, 100.0, Fraction(121, 2)])
def test_a_number_out_of_range_is_refused_with_the_range(conditioned: MakeBundle, fps: Any) -> None:
    with pytest.raises(RequestError, match=r"fps must be a number from 1 to 60; got \d"):
        settled(conditioned("fps", 1, 60), fps=fps)


@pytest.mark.parametrize("fps", ["fast", "1e999999999", True, [24], "24/0", "24000/1001"])
def test_what_is_no_rate_is_refused_like_any_other(conditioned: MakeBundle, fps: Any) -> None:
    with pytest.raises(RequestError, match="fps must be a number or a Fraction from 1 to 240"):
        settled(conditioned("fps", 1, 60), fps=fps)


def test_a_bundle_whose_default_is_out_of_range_is_refused(conditioned: MakeBundle) -> None:
    with pytest.raises(BundleError, match="the default fps is 8, and the model takes 10 to 60"):
        conditioned("fps", 10, 60)


def test_a_bundle_that_follows_what_no_request_says_is_refused(make_bundle: MakeBundle) -> None:
    [prompt] = make_bundle().manifest.texts
    bundle = make_bundle(conditionings=(msgspec.structs.replace(prompt, name="mood"),))
    with pytest.raises(
        BundleError, match="the bundle needs the parameter 'mood', and this version of Mutoscope does not have it"
    ):
        load_conditions(bundle)
