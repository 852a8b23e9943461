"""The pipeline on the fake backend: what runs when, what is open meanwhile, and what comes out."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchLCMScheduler, UniPCMultistepScheduler
from mutoscope.conditions.text import Tokenizer

from tests.runtime.pipeline.functions import PROMPT, SHORT_OF_MEMORY, encode, features, network, pixels

ONE_VIDEO = [
    *[("open", "text_encoder"), ("run", "text_encoder"), ("open", "denoiser"), *[("run", "denoiser")] * 4],
    *[("open", "vae_features_first"), ("run", "vae_features_first")],
    *[("open", "vae_decoder_first"), ("run", "vae_decoder_first")],
    *[("open", "vae_features_next"), ("run", "vae_features_next")],
    *[("open", "vae_decoder_next"), ("run", "vae_decoder_next")],
    *[("run", "vae_features_next"), ("run", "vae_decoder_next")],
]


def test_the_stages_run_one_after_the_other_and_stay_open_for_the_next_video(backend, pipeline) -> None:
    pipeline.generate(PROMPT)
    assert backend.log == ONE_VIDEO
    pipeline.generate(PROMPT)
    assert backend.log[len(ONE_VIDEO) :] == [event for event in ONE_VIDEO if event[0] == "run"]
    pipeline.close()
    assert backend.open_sessions == 0


def test_where_memory_is_short_each_graph_is_closed_before_the_next_stage(backend, short_of_memory, pipeline) -> None:
    pipeline.generate(PROMPT)
    assert [event for event in backend.log if event[0] != "close"] == ONE_VIDEO
    order = backend.log.index
    assert order(("close", "text_encoder")) < order(("open", "denoiser"))
    assert order(("close", "denoiser")) < order(("open", "vae_features_first"))
    assert backend.open_sessions == 0


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_latents_are_those_of_diffusers_scheduler_and_torch_noise(
    backend, load, make_bundle, guidance_scale: float, branches_per_call: int
) -> None:
    bundle = make_bundle()
    with load(bundle, branches_per_call=branches_per_call) as pipeline:
        pipeline.generate(PROMPT, seed=3, guidance_scale=guidance_scale, num_inference_steps=5, negative_prompt="black")
    tokens = Tokenizer(bundle, bundle.manifest.texts[0]).encode({"prompt": PROMPT, "negative_prompt": "black"}, 24)
    positive, negative = encode(tokens.input_ids, tokens.attention_mask)

    scheduler = UniPCMultistepScheduler.from_config(bundle.manifest.scheduler)
    scheduler.set_timesteps(5)
    x = torch.randn((1, 4, 3, 4, 6), generator=torch.Generator().manual_seed(3))
    for t in scheduler.timesteps:
        v = network(x, float(t), positive)
        if guidance_scale > 1:
            uncond = network(x, float(t), negative)
            v = uncond + guidance_scale * (v - uncond)
        x = scheduler.step(v, t, x).prev_sample
    decoded = np.concatenate([fed["latents"] for role, fed in backend.fed if role.startswith("vae_features")], axis=2)
    np.testing.assert_allclose(decoded, x.numpy(), atol=2e-5)


def guided(x: Any, timestep: Any, embeds: list[Any], guidance_scale: float) -> Any:
    negative, positive = (network(x, float(timestep), each) for each in embeds)
    return negative + guidance_scale * (positive - negative)


def embeds_of(bundle: Any) -> list[Any]:
    tokens = Tokenizer(bundle, bundle.manifest.texts[0]).encode(
        {"negative_prompt": "a black background", "prompt": PROMPT}, 24
    )
    return [encode(ids, mask) for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)]


def decoded(backend: Any) -> Any:
    return np.concatenate([fed["latents"] for role, fed in backend.fed if role.startswith("vae_features")], axis=2)


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_a_few_step_model_returns_to_the_noise_that_torch_draws_next(
    backend, load, make_bundle, branches_per_call: int
) -> None:
    """A distilled bundle: its defaults name the solver, the levels, and as many steps."""
    defaults = {"scheduler": "lcm", "sigmas": (1.0, 0.75, 0.5, 0.25)}
    bundle = make_bundle(defaults=defaults)
    with load(bundle, branches_per_call=branches_per_call) as pipeline:
        pipeline.generate(PROMPT, seed=3, guidance_scale=4.0)
    scheduler, generator = FlowMatchLCMScheduler(shift=3.0), torch.Generator().manual_seed(3)
    scheduler.set_timesteps(sigmas=list(defaults["sigmas"]))
    x = torch.randn((1, 4, 3, 4, 6), generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(guided(x, t, embeds_of(bundle), 4.0), t, x, generator=generator).prev_sample
    np.testing.assert_allclose(decoded(backend), x.numpy(), atol=2e-5)


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_cached_steps_follow_diffusers_with_the_guided_velocity_extrapolated(
    backend, load, make_bundle, branches_per_call: int
) -> None:
    bundle, told = make_bundle(), []
    with load(bundle, branches_per_call=branches_per_call) as pipeline:
        asked = {"seed": 3, "guidance_scale": 4.0, "num_inference_steps": 10, "cache_interval": 4}
        plan = pipeline.generate(PROMPT, on_step=told.append, **asked).plan
    scheduler = UniPCMultistepScheduler.from_config(bundle.manifest.scheduler)
    scheduler.set_timesteps(10)
    x, seen = torch.randn((1, 4, 3, 4, 6), generator=torch.Generator().manual_seed(3)), []
    for index, t in enumerate(scheduler.timesteps):
        if index in (0, 1, 2, 4, 6, 9):
            seen.append((index, guided(x, t, embeds_of(bundle), 4.0)))
        (earlier, before), (later, last) = seen[-2:] if len(seen) > 1 else [(-1, seen[0][1]), seen[0]]
        x = scheduler.step(last + (last - before) * (index - later) / (later - earlier), t, x).prev_sample
    np.testing.assert_allclose(decoded(backend), x.numpy(), atol=2e-5)
    assert plan.schedule.num_inference_steps == 10 and plan.schedule.timesteps == tuple(
        float(scheduler.timesteps[index]) for index in (0, 1, 2, 4, 6, 9)
    )
    assert [(event.step, event.total) for event in told] == [(number, 6) for number in range(1, 7)]


def test_guidance_in_two_calls_adds_the_second_branch_to_what_the_first_left(backend, load) -> None:
    with load(branches_per_call=1) as pipeline:
        pipeline.generate(PROMPT, guidance_scale=4.0)
    first, second, third = [fed for role, fed in backend.fed if role == "denoiser"][:3]
    assert len(first["prompt_embeds"]) == len(second["prompt_embeds"]) == 1
    assert (first["guidance_weights"], second["guidance_weights"]) == ([-3.0], [4.0])
    np.testing.assert_array_equal(second["solver_a"], np.eye(4))
    np.testing.assert_array_equal(first["latents"], second["latents"])
    assert not np.array_equal(first["solver_a"], np.eye(4)) and third["timestep"] != first["timestep"]


def test_frames_are_the_decoded_chunks_in_order(backend, pipeline) -> None:
    video = pipeline.generate(PROMPT, seed=1)
    assert video.frames.dtype == np.uint8 and video.frames.shape == (9, 32, 48, 3)
    first, second, third = [fed["latents"] for role, fed in backend.fed if role.startswith("vae_features")]
    seen = [features(first, 0), features(second, first), features(third, second)]
    expected = [pixels(seen[0], 1), pixels(seen[1] + seen[0], 4), pixels(seen[2] + seen[1], 4)]
    np.testing.assert_array_equal(video.frames, np.concatenate(expected))


IN_TILES = [
    *[("run", "vae_features_first"), *[("run", "vae_features_next")] * 2],
    *[("run", "vae_decoder_first"), *[("run", "vae_decoder_next")] * 2] * 4,
]


def test_frames_in_tiles_are_those_of_the_whole_and_come_with_the_last_tile(backend, pipeline, load) -> None:
    whole = pipeline.generate(PROMPT, seed=1)
    pipeline.close()
    backend.log.clear()
    with load(tile=(24, 32)) as tiled, tiled.stream(PROMPT, seed=1) as stream:
        assert (stream.plan.decoder_window, stream.plan.decoder_tiles) == ((3, 4), 4)
        chunks = []
        for number, chunk in enumerate(stream, start=1):
            runs = [event for event in backend.log if event[0] == "run" and event[1].startswith("vae")]
            assert runs == IN_TILES[: len(IN_TILES) - 3 + number]
            chunks.append(chunk)
        np.testing.assert_array_equal(np.concatenate(chunks), whole.frames)
        assert [backend.log.count(("open", role)) for role in ("vae_decoder_first", "vae_decoder_next")] == [1, 1]
        assert backend.log.index(("close", "vae_features_next")) < backend.log.index(("open", "vae_decoder_first"))
        assert backend.open_bindings == 0 and backend.open_sessions == 0


def test_a_tile_as_large_as_the_picture_is_the_whole(backend, load) -> None:
    with load(tile=(480, 480)) as tiled:
        assert tiled.plan(PROMPT).decoder_tiles == 1
        tiled.generate(PROMPT)
        assert backend.log == ONE_VIDEO


def test_on_step_counts_to_the_total_and_can_look_at_the_latents(backend, pipeline) -> None:
    seen = []
    pipeline.generate(PROMPT, on_step=lambda event: seen.append((event.step, event.total, event.preview())))
    assert [(step, total) for step, total, _ in seen] == [(step, 4) for step in (1, 2, 3, 4)]
    assert all(preview.dtype == np.uint8 and preview.shape == (3, 4, 6, 3) for *_, preview in seen)
    last = np.concatenate([fed["latents"][0] for role, fed in backend.fed if role.startswith("vae_features")], axis=1)
    expected = np.clip(128 + 10 * last[:3] + last[3], 0, 255).transpose(1, 2, 3, 0)
    np.testing.assert_allclose(seen[-1][2], expected, atol=0.51)


def test_a_bundle_without_a_preview_map_has_no_preview(load, make_bundle) -> None:
    seen = []
    with load(make_bundle(preview=None)) as pipeline:
        pipeline.generate(PROMPT, num_frames=1, on_step=lambda event: seen.append(event.preview()))
    assert seen == [None] * 4


def test_a_stream_is_lazy(backend, pipeline) -> None:
    stream = pipeline.stream(PROMPT)
    assert backend.log == [] and stream.plan.geometry.num_frames == 9
    assert next(stream).shape == (1, 32, 48, 3)
    assert backend.log[-1] == ("run", "vae_decoder_first")
    assert [len(chunk) for chunk in stream] == [4, 4]
    assert set(stream.times.seconds) == {"condition", "denoise", "decode"}


def test_planning_opens_no_graph_and_says_what_generate_does(backend, pipeline) -> None:
    plan = pipeline.plan(PROMPT, seed=4)
    assert backend.log == [] and plan.placements.backend == "fake of functions"
    assert pipeline.generate(PROMPT, seed=4).plan == plan


def test_each_stage_is_announced_before_it_opens_a_graph(backend, pipeline) -> None:
    seen = []
    pipeline.generate(PROMPT, on_stage=lambda stage: seen.append((stage, len(backend.log))))
    positions = [ONE_VIDEO.index(("open", role)) for role in ("text_encoder", "denoiser", "vae_features_first")]
    assert seen == list(zip(("condition", "denoise", "decode"), positions, strict=True))


def test_sessions_get_the_threads_that_the_plan_names(backend, pipeline) -> None:
    plan = pipeline.generate(PROMPT).plan
    assert {session.options.threads for session in backend.sessions} == {plan.placements.threads}


@pytest.mark.parametrize("fits", [True, False])
def test_two_threads_get_the_videos_that_each_would_get_alone(backend, load, fits: bool) -> None:
    if not fits:
        backend.memory = SHORT_OF_MEMORY
    with load() as pipeline:
        assert pipeline.plan(PROMPT).memory.keep_loaded == fits
        alone = [pipeline.generate(PROMPT, seed=seed).frames for seed in range(8)]
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(lambda seed: pipeline.generate(PROMPT, seed=seed).frames, range(8)))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)
        assert not np.array_equal(alone[0], alone[1])
        assert backend.open_bindings == 0 and (fits or backend.open_sessions == 0)


def test_nothing_of_a_request_stays_in_the_pipeline(backend, pipeline) -> None:
    before = dict(vars(pipeline))
    video = pipeline.generate(PROMPT, seed=11)
    plan = weakref.ref(video.plan)
    del video
    gc.collect()
    assert vars(pipeline) == before and plan() is None
