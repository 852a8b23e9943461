"""A pipeline that is refused, stopped or closed: what is said of it, and that nothing stays open."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope import CancelledError, NumericalError, Pipeline, RequestError
from mutoscope.errors import OutOfMemoryError, ShapeError
from mutoscope_engines.errors import out_of_memory

from tests.runtime.pipeline.functions import PROMPT, denoiser, pixels


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_a_step_that_gives_nan_stops_the_run_and_is_named(backend, load, branches_per_call: int) -> None:
    def nan_in_the_third_run(latents: Any, **others: Any) -> Any:
        if backend.log.count(("run", "denoiser")) == 3:
            latents = np.full_like(latents, np.nan)
        return denoiser(latents, **others)

    backend.graphs["denoiser"] = nan_in_the_third_run
    with load(branches_per_call=branches_per_call) as pipeline:
        step = 2 if branches_per_call == 1 else 3
        with pytest.raises(NumericalError, match=f"step {step} of 4 gave nan.*fp32.*seed") as failure:
            pipeline.generate(PROMPT, guidance_scale=4.0)
        assert failure.value.exit_code == 6
        assert backend.log[-1] == ("run", "denoiser") and backend.open_bindings == 0


def test_tiles_given_up_or_of_another_size_leave_no_graph_in_use(backend, load) -> None:
    with load(tile=(24, 32)) as tiled:
        with tiled.stream(PROMPT) as stream:
            next(stream)
            assert backend.open_bindings == 3
        assert backend.open_bindings == 0
        backend.checks_outputs = False
        backend.graphs["vae_decoder_first"] = lambda features: {"frames": np.zeros((1, 16, 32, 3), np.uint8)}
        with pytest.raises(
            ShapeError, match=r"frames are uint8 \(1, 16, 32, 3\); they must be uint8 \('n', 24, 32, 3\)"
        ):
            tiled.generate(PROMPT)
        assert backend.open_bindings == 0


@pytest.mark.parametrize("error", [CancelledError("enough"), ZeroDivisionError(), KeyboardInterrupt()])
def test_what_on_step_raises_stops_the_run_and_leaves_no_graph_in_use(backend, pipeline, error) -> None:
    def stop(event: Any) -> None:
        if event.step == 2:
            raise error

    with pytest.raises(type(error)):
        pipeline.generate(PROMPT, on_step=stop)
    assert backend.log[-2:] == [("run", "denoiser")] * 2 and backend.log[-3] == ("open", "denoiser")
    assert backend.open_bindings == 0
    assert pipeline.generate(PROMPT).frames.shape == (9, 32, 48, 3)


def test_a_wrong_request_is_refused_before_anything_is_opened(backend, pipeline) -> None:
    with pytest.raises(RequestError, match="multiple of 16"):
        pipeline.stream(PROMPT, height=33)
    with pytest.raises(
        RequestError, match=r"no parameter 'hight'; did you mean height\? .*; there is no parameter 'steps'"
    ):
        pipeline.generate(PROMPT, hight=32, steps=5)
    with pytest.raises(RequestError, match=r"no parameter 'device'\. There are: precision, .*backend"):
        Pipeline.load(pipeline.bundle.root, device="cpu")
    assert backend.log == []


def test_a_prompt_given_twice_or_not_at_all_is_refused(backend, pipeline) -> None:
    with pytest.raises(RequestError, match="given twice"):
        pipeline.plan(PROMPT, prompt=PROMPT)
    with pytest.raises(RequestError, match="the prompt is missing"):
        pipeline.plan()
    assert pipeline.plan(prompt=PROMPT).conditions.prompt == PROMPT


def test_an_unknown_option_of_save_is_refused(backend, pipeline, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no parameter 'quality'\. There are: codec"):
        pipeline.generate(PROMPT, num_frames=1).save(tmp_path / "video.npy", quality=3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"threads": 0}, "threads must be a whole number"),
        ({"branches_per_call": 3}, "branches_per_call must be a whole number"),
        ({"precision": "int8"}, "there is no precision 'int8' in the bundle. There are: fp32"),
        ({"tile": (16, 24)}, r"tile=\(16, 24\) must be multiples of 8 and at least 24"),
    ],
)
def test_options_are_checked_when_the_bundle_is_loaded(load, options: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        load(**options)


def test_a_stream_given_up_halfway_leaves_no_graph_in_use(backend, short_of_memory, pipeline) -> None:
    stream = pipeline.stream(PROMPT)
    next(stream)
    assert backend.open_bindings == 2
    stream.close()
    assert backend.open_bindings == 0 and backend.open_sessions == 0


def test_a_stream_is_given_up_at_the_end_of_its_with(backend, short_of_memory, pipeline) -> None:
    with pipeline.stream(PROMPT) as stream:
        next(stream)
        assert backend.open_bindings == 2
    assert backend.open_bindings == 0 and backend.open_sessions == 0


def test_closing_between_two_chunks_of_a_stream_ends_it(backend, pipeline) -> None:
    stream = pipeline.stream(PROMPT)
    next(stream)
    pipeline.close()
    with pytest.raises(CancelledError, match="closed"):
        next(stream)
    assert backend.open_sessions == 0


def test_closing_between_two_steps_ends_the_run(backend, pipeline) -> None:
    with pytest.raises(CancelledError, match="closed"):
        pipeline.generate(PROMPT, on_step=lambda event: pipeline.close())
    assert backend.log.count(("run", "denoiser")) == 1 and backend.open_sessions == 0


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder_next"])
def test_closing_from_another_thread_stops_what_runs_and_frees_it(backend, pipeline, role: str) -> None:
    hanging = backend.hold(role)
    with ThreadPoolExecutor(1) as thread:
        video = thread.submit(pipeline.generate, PROMPT)
        assert hanging.wait(60)
        pipeline.close()
        with pytest.raises(CancelledError):
            video.result()
    assert backend.open_sessions == 0


def test_a_closed_pipeline_makes_no_video_and_closes_again(backend, pipeline) -> None:
    pipeline.close()
    pipeline.close()
    for use in (pipeline.generate, pipeline.stream, pipeline.plan):
        with pytest.raises(RuntimeError, match="this pipeline is closed; load it again"):
            use(PROMPT)


def test_a_stream_begun_after_its_pipeline_was_closed_is_cancelled(backend, pipeline) -> None:
    stream = pipeline.stream(PROMPT)
    pipeline.close()
    with pytest.raises(CancelledError, match="closed"):
        next(stream)


@pytest.mark.parametrize("frames", [3, 5])
def test_another_number_of_frames_than_the_plan_says_is_refused(backend, pipeline, frames: int) -> None:
    backend.checks_outputs = False
    backend.graphs["vae_decoder_next"] = lambda features, **caches: {"frames": pixels(features, frames), **caches}
    with pytest.raises(ShapeError, match=r"must have 9 frames; there are (7|more)"):
        pipeline.generate(PROMPT)
    assert backend.open_bindings == 0


def test_running_out_of_memory_anywhere_in_a_run_says_what_to_lower(backend, pipeline) -> None:
    def exhausted(**_: Any) -> Any:
        raise MemoryError("Unable to allocate 9 GiB")

    backend.graphs["denoiser"] = exhausted
    with pytest.raises(
        OutOfMemoryError, match="Unable to allocate 9 GiB; close other programs, or ask for a smaller height"
    ):
        pipeline.generate(PROMPT)


def test_what_a_backend_says_of_memory_is_told_with_what_makes_a_video_smaller(backend, pipeline) -> None:
    def exhausted(**_: Any) -> Any:
        raise out_of_memory("running a graph", "bad_alloc", on_device=True)

    backend.graphs["denoiser"] = exhausted
    complaint = (
        "bad_alloc; lower memory_limit, or close other programs; or ask for a smaller height, width or num_frames"
    )
    with pytest.raises(OutOfMemoryError, match=complaint):
        pipeline.generate(PROMPT)
