"""The built-in bundle through the sessions of a GPU, on host memory: the same video, and what is captured or copied."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mutoscope import BackendUnavailableError, Pipeline, RequestError

from tests.engines.pretended import TensorRtOnHost

PROMPT, SMALL = "a red circle moving right on a black background", {"height": 32, "width": 32, "num_frames": 9}
SHORT_OF_MEMORY = 10 * 10**6  # bytes: enough for each stage by itself, and too few to keep all loaded


@pytest.fixture
def backend() -> TensorRtOnHost:
    return TensorRtOnHost()


def load(backend: TensorRtOnHost, **options: Any) -> Pipeline:
    return Pipeline.load(backend=backend, precision="fp32", **options)


@pytest.fixture
def pipeline(backend: TensorRtOnHost) -> Iterator[Pipeline]:
    with load(backend) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime", precision="fp32") as pipeline:
        yield pipeline


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_the_video_is_that_of_the_cpu(backend, on_cpu, branches_per_call: int) -> None:
    expected = on_cpu.generate(PROMPT, seed=7, num_inference_steps=3, guidance_scale=3.0, **SMALL)
    with load(backend, branches_per_call=branches_per_call) as pipeline:
        video = pipeline.generate(PROMPT, seed=7, num_inference_steps=3, guidance_scale=3.0, **SMALL)
    assert video.plan.branches_per_call == branches_per_call
    apart = video.frames.astype(int) - expected.frames
    assert np.abs(apart).max() <= (0 if branches_per_call == 2 else 2)


def test_prompt_guidance_scale_and_steps_change_without_another_capture(backend, pipeline) -> None:
    pipeline.generate(PROMPT, seed=1, num_inference_steps=3, guidance_scale=3.0, **SMALL)
    assert backend.on_host.captures == 3  # the denoiser, and both parts of the decoder of all but the first frame
    # What ran once is repeated now, and what ran before the scratch memory grew to its final size runs as it is once
    # more, and is captured again.
    for _ in range(2):
        pipeline.generate(PROMPT, seed=1, num_inference_steps=3, guidance_scale=3.0, **SMALL)
    captures = backend.on_host.captures
    pipeline.generate(PROMPT, seed=2, num_inference_steps=5, guidance_scale=1.5, **SMALL)
    pipeline.generate("a blue square", seed=2, num_inference_steps=2, guidance_scale=3.0, **SMALL)
    assert backend.on_host.captures == captures


def test_a_step_copies_its_numbers_in_and_its_peak_out(backend, pipeline) -> None:
    logs: list[list[str]] = []

    def on_step(event) -> None:
        logs.append(list(backend.on_host.log))
        backend.on_host.log.clear()

    plan = pipeline.generate(PROMPT, seed=1, num_inference_steps=4, guidance_scale=3.0, on_step=on_step, **SMALL).plan
    latents = 4 * int(np.prod(plan.geometry.latents_shape))
    rows = plan.schedule.state_rows
    for log in logs[1:]:
        assert sorted(log) == sorted(
            [
                "upload 4",  # the timestep
                f"upload {4 * rows}",  # solver_b
                f"upload {4 * rows * rows}",  # solver_a
                f"copy {rows * latents}",  # the state
                f"copy {latents}",
                "download 4",  # velocity_peak
            ]
        )


def test_stages_take_the_memory_in_turns_and_leave_none_of_it(backend) -> None:
    backend.memory = SHORT_OF_MEMORY
    with load(backend) as pipeline:
        used = []
        pipeline.generate(
            PROMPT, num_inference_steps=2, on_stage=lambda stage: used.append(backend.on_host.used), **SMALL
        )
        gc.collect()
        assert used == [0, 0, 0] and backend.on_host.used == 0 and backend.on_host.peak > 0


def test_the_first_graphs_of_the_decoder_are_closed_once_their_caches_are_taken_over(backend) -> None:
    backend.memory = SHORT_OF_MEMORY
    with load(backend) as pipeline, pipeline.stream(PROMPT, num_inference_steps=1, **SMALL) as stream:
        assert [backend.on_host.sessions for _ in stream] == [2, 2, 2]
        assert backend.on_host.sessions == 0


def test_frames_stay_on_the_device_for_those_who_take_them_there(backend, pipeline) -> None:
    asked = {"seed": 7, "num_inference_steps": 2, **SMALL}
    expected = pipeline.generate(PROMPT, **asked).frames
    with pipeline.stream(PROMPT, **asked) as stream:
        taken = []
        for chunk in stream.on_device():
            assert f"download {chunk.size}" not in backend.on_host.log[-1:]
            taken.append(np.from_dlpack(chunk).copy())
    np.testing.assert_array_equal(np.concatenate(taken), expected)


def test_tiles_replay_one_graph_and_are_put_together_on_the_host(backend, on_cpu) -> None:
    asked = {"seed": 7, "num_inference_steps": 2, "height": 192, "width": 32, "num_frames": 9}
    with on_cpu.stream(PROMPT, **asked) as stream:
        expected = np.concatenate(list(stream))
    with load(backend, tile=(176, 176)) as tiled:
        video = tiled.generate(PROMPT, **asked)
        assert video.plan.decoder_tiles == 2
        # Each graph that runs again, once: the denoiser, the features after the first frame, the decoder after the
        # first frame. Its first, too, runs twice, but the memory for activations grew in between.
        assert backend.on_host.captures == 3
        with tiled.stream(PROMPT, **asked) as stream, pytest.raises(RequestError, match="put together in host memory"):
            stream.on_device()
    np.testing.assert_allclose(video.frames, expected, atol=1)


def test_on_the_cpu_there_is_no_device_to_leave_frames_on(on_cpu) -> None:
    with on_cpu.stream(PROMPT, **SMALL) as stream, pytest.raises(BackendUnavailableError, match="use a GPU backend"):
        stream.on_device()
