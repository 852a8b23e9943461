"""The pipeline on a backend that is NumPy: what runs when, what is open meanwhile, and what a failure leaves behind."""

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutoscope.planning.memory_plan
import numpy as np
import pytest
import torch
from diffusers import FlowMatchLCMScheduler, UniPCMultistepScheduler
from mutoscope import CancelledError, NumericalError, Pipeline, RequestError
from mutoscope.conditions.text import Tokenizer
from mutoscope.errors import OutOfMemoryError, ShapeError
from mutoscope_engines import backends
from mutoscope_engines.session import Backend, Binding, Session, SessionOptions

PROMPT = "a red circle"


def network(latents: Any, timestep: float, embeds: Any) -> Any:
    """A velocity that depends on everything the network is given."""
    return 0.5 * latents + float(embeds.mean()) / 20 + timestep / 2000


def encode(input_ids: Any, mask: Any) -> Any:
    return (input_ids * mask)[..., None] * np.linspace(0.5, 1, 6, dtype=np.float32)


class NumpyTensor:
    """Refuses to be used once its binding ran again or its session was closed, as the contract allows a backend to."""

    def __init__(self, binding: "NumpyBinding", values: Any) -> None:
        self.binding, self.values, self.run = binding, np.asarray(values), binding.runs

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> str:
        return str(self.values.dtype)

    def row(self, index: int) -> "NumpyTensor":
        return NumpyTensor(self.binding, self.values[index])

    def numpy(self) -> Any:
        assert not self.binding.session.closed, "a tensor was used after its session was closed"
        assert self.binding.runs == self.run, "a tensor was used after the next run of its binding"
        return self.values.copy()


class NumpyBinding(Binding):
    def __init__(self, session: "NumpySession") -> None:
        self.session, self.runs, self.fed = session, 0, {}

    def run(self, feeds: Any) -> Any:
        self.fed |= {name: value.numpy() if isinstance(value, NumpyTensor) else value for name, value in feeds.items()}
        self.runs += 1
        return {name: NumpyTensor(self, values) for name, values in self.session.compute(self.fed).items()}

    def close(self) -> None:
        self.runs += 1


class NumpySession(Session):
    inputs = outputs = ()

    def __init__(self, backend: "NumpyBackend", role: str) -> None:
        self.backend, self.role, self.closed = backend, role, False
        self.cancelled = threading.Event()

    def bind(self) -> Binding:
        return NumpyBinding(self)

    def compute(self, arrays: dict[str, Any]) -> dict[str, Any]:
        assert not self.closed
        self.backend.log.append(("run", self.role))
        if self.backend.hangs_in == self.role:
            self.backend.hanging.set()
            assert self.cancelled.wait(60)
            raise CancelledError("cancelled")
        self.backend.fed.append((self.role, dict(arrays)))
        outputs: dict[str, Any] = getattr(self, "_" + self.role)(**arrays)
        return outputs

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.backend.log.append(("close", self.role))
        self.closed = True

    def _text_encoder(self, input_ids: Any, attention_mask: Any) -> Any:
        return {"prompt_embeds": encode(input_ids, attention_mask)}

    def _denoiser(self, latents: Any, timestep: Any, prompt_embeds: Any, guidance_weights: Any, **solver: Any) -> Any:
        branches = [network(latents, timestep[0], embeds) for embeds in prompt_embeds]
        v = np.tensordot(guidance_weights, np.stack(branches), 1)
        if len([run for run in self.backend.log if run == ("run", "denoiser")]) == self.backend.nan_in_run:
            v[0, 0, 0, 0] = np.nan
        next_state = np.tensordot(solver["solver_a"], solver["state"], 1) + np.multiply.outer(solver["solver_b"], v)
        return {"next_state": next_state.astype(np.float32), "velocity_peak": np.abs(v).max()}

    def _vae_features_first(self, latents: Any) -> Any:
        return {"features": features(latents, 0 * latents), "cache_0": latents}

    def _vae_features_next(self, latents: Any, cache_0: Any) -> Any:
        return {"features": features(latents, cache_0), "next_cache_0": latents}

    def _vae_decoder_first(self, features: Any) -> Any:
        return {"frames": pixels(features, 1), "cache_0": features, "cache_1": features[:, :1]}

    def _vae_decoder_next(self, features: Any, cache_0: Any, cache_1: Any) -> Any:
        return {"frames": pixels(features + cache_0, 4), "next_cache_0": features, "next_cache_1": cache_1}


def features(latents: Any, before: Any) -> Any:
    """[1, C, 1, h, w] -> f32 [1, C, h, w], each of which depends on the whole frame and the frame before"""
    return (latents + latents.mean() + before / 2)[:, :, 0]


def pixels(features: Any, frames: int) -> Any:
    """[1, C, h, w] -> u8 [frames, H, W, 3], each from its pixel and those beside it, none beyond the border"""
    beside = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = features.shape[2:]
    around = sum(beside[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3))
    image = np.clip(128 + 5 * around[0, :3], 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.stack([image.repeat(8, 0).repeat(8, 1)] * frames)


class NumpyBackend(Backend):
    name = "numpy"

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.fed: list[tuple[str, dict[str, Any]]] = []
        self.hangs_in, self.nan_in_run = "", 0
        self.hanging = threading.Event()
        self.sessions: list[NumpySession] = []

    def unavailable_because(self) -> str | None:
        return None

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def supports(self, precision: str) -> bool:
        return precision == "fp32"

    def open(self, graph: Path, options: SessionOptions) -> Session:
        self.sessions.append(NumpySession(self, graph.parent.name))
        self.log.append(("open", graph.parent.name))
        return self.sessions[-1]

    def all_closed(self) -> bool:
        return all(session.closed for session in self.sessions)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> NumpyBackend:
    backend = NumpyBackend()
    monkeypatch.setitem(sys.modules, "numpy_backend", SimpleNamespace(only=lambda: backend))
    monkeypatch.setattr(backends, "BACKENDS", {"numpy": "numpy_backend:only"})
    return backend


@pytest.fixture
def pipeline(backend: NumpyBackend, make_bundle) -> Iterator[Pipeline]:
    with Pipeline.load(make_bundle().root) as pipeline:
        yield pipeline


@pytest.fixture
def keeps_nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutoscope.planning.memory_plan, "SHARE_FOR_GOOD", 0)


def in_use(pipeline: Pipeline) -> int:
    return sum(pipeline._graphs._users.values())


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
    assert backend.all_closed()


def test_where_memory_is_short_each_graph_is_closed_before_the_next_stage(
    backend, pipeline, keeps_nothing_loaded
) -> None:
    pipeline.generate(PROMPT)
    assert [event for event in backend.log if event[0] != "close"] == ONE_VIDEO
    order = backend.log.index
    assert order(("close", "text_encoder")) < order(("open", "denoiser"))
    assert order(("close", "denoiser")) < order(("open", "vae_features_first"))
    assert backend.all_closed()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_latents_are_those_of_diffusers_scheduler_and_torch_noise(
    backend, make_bundle, guidance_scale: float, branches_per_call: int
) -> None:
    bundle = make_bundle()
    with Pipeline.load(bundle.root, branches_per_call=branches_per_call) as pipeline:
        pipeline.generate(PROMPT, seed=3, guidance_scale=guidance_scale, num_inference_steps=5, negative_prompt="black")
    tokens = Tokenizer(bundle).encode({"prompt": PROMPT, "negative_prompt": "black"}, 24)
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
    tokens = Tokenizer(bundle).encode({"negative_prompt": "a black background", "prompt": PROMPT}, 24)
    return [encode(ids, mask) for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)]


def decoded(backend: Any) -> Any:
    return np.concatenate([fed["latents"] for role, fed in backend.fed if role.startswith("vae_features")], axis=2)


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_a_few_step_model_returns_to_the_noise_that_torch_draws_next(
    backend, make_bundle, branches_per_call: int
) -> None:
    """A distilled bundle: its defaults name the solver, the levels, and as many steps."""
    defaults = {"scheduler": "lcm", "sigmas": (1.0, 0.75, 0.5, 0.25)}
    bundle = make_bundle(defaults=defaults)
    with Pipeline.load(bundle.root, branches_per_call=branches_per_call) as pipeline:
        pipeline.generate(PROMPT, seed=3, guidance_scale=4.0)
    scheduler, generator = FlowMatchLCMScheduler(shift=3.0), torch.Generator().manual_seed(3)
    scheduler.set_timesteps(sigmas=list(defaults["sigmas"]))
    x = torch.randn((1, 4, 3, 4, 6), generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(guided(x, t, embeds_of(bundle), 4.0), t, x, generator=generator).prev_sample
    np.testing.assert_allclose(decoded(backend), x.numpy(), atol=2e-5)


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_cached_steps_follow_diffusers_with_the_guided_velocity_extrapolated(
    backend, make_bundle, branches_per_call: int
) -> None:
    bundle, told = make_bundle(), []
    with Pipeline.load(bundle.root, branches_per_call=branches_per_call) as pipeline:
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
    assert plan.num_inference_steps == 10 and plan.timesteps == tuple(
        float(scheduler.timesteps[index]) for index in (0, 1, 2, 4, 6, 9)
    )
    assert [(event.step, event.total) for event in told] == [(number, 6) for number in range(1, 7)]


def test_guidance_in_two_calls_adds_the_second_branch_to_what_the_first_left(backend, make_bundle) -> None:
    with Pipeline.load(make_bundle().root, branches_per_call=1) as pipeline:
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


def test_frames_in_tiles_are_those_of_the_whole_and_come_with_the_last_tile(backend, pipeline, make_bundle) -> None:
    whole = pipeline.generate(PROMPT, seed=1)
    pipeline.close()
    backend.log.clear()
    with Pipeline.load(make_bundle().root, tile="24x32") as tiled, tiled.stream(PROMPT, seed=1) as stream:
        assert (stream.plan.decoder_window, stream.plan.decoder_tiles) == ((3, 4), 4)
        chunks = []
        for number, chunk in enumerate(stream, start=1):
            runs = [event for event in backend.log if event[0] == "run" and event[1].startswith("vae")]
            assert runs == IN_TILES[: len(IN_TILES) - 3 + number]
            chunks.append(chunk)
        np.testing.assert_array_equal(np.concatenate(chunks), whole.frames)
        assert [backend.log.count(("open", role)) for role in ("vae_decoder_first", "vae_decoder_next")] == [1, 1]
        assert backend.log.index(("close", "vae_features_next")) < backend.log.index(("open", "vae_decoder_first"))
        assert in_use(tiled) == 0 and backend.all_closed()


def test_tiles_given_up_or_of_another_size_leave_no_graph_in_use(backend, make_bundle, monkeypatch) -> None:
    with Pipeline.load(make_bundle().root, tile="24x32") as tiled:
        with tiled.stream(PROMPT) as stream:
            next(stream)
            assert in_use(tiled) == 3
        assert in_use(tiled) == 0
        smaller = {"frames": np.zeros((1, 16, 32, 3), np.uint8)}
        monkeypatch.setattr(NumpySession, "_vae_decoder_first", lambda self, features: smaller)
        with pytest.raises(ShapeError, match=r"gave frames \(1, 16, 32, 3\) for a tile of 3x4 latents"):
            tiled.generate(PROMPT)
        assert in_use(tiled) == 0


def test_a_tile_as_large_as_the_picture_is_the_whole(backend, make_bundle) -> None:
    with Pipeline.load(make_bundle().root, tile="480x480") as tiled:
        assert tiled.plan(PROMPT).decoder_tiles == 1
        tiled.generate(PROMPT)
        assert backend.log == ONE_VIDEO


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_a_step_that_gives_nan_stops_the_run_and_is_named(backend, make_bundle, branches_per_call: int) -> None:
    backend.nan_in_run = 3
    with Pipeline.load(make_bundle().root, branches_per_call=branches_per_call) as pipeline:
        step = 2 if branches_per_call == 1 else 3
        with pytest.raises(NumericalError, match=f"step {step} of 4 gave nan.*fp32.*seed") as failure:
            pipeline.generate(PROMPT, guidance_scale=4.0)
        assert failure.value.exit_code == 6
        assert backend.log[-1] == ("run", "denoiser") and in_use(pipeline) == 0


def test_on_step_counts_to_the_total_and_can_look_at_the_latents(backend, pipeline) -> None:
    seen = []
    pipeline.generate(PROMPT, on_step=lambda event: seen.append((event.step, event.total, event.preview())))
    assert [(step, total) for step, total, _ in seen] == [(step, 4) for step in (1, 2, 3, 4)]
    assert all(preview.dtype == np.uint8 and preview.shape == (3, 4, 6, 3) for *_, preview in seen)
    last = np.concatenate([fed["latents"][0] for role, fed in backend.fed if role.startswith("vae_features")], axis=1)
    expected = np.clip(128 + 10 * last[:3] + last[3], 0, 255).transpose(1, 2, 3, 0)
    np.testing.assert_allclose(seen[-1][2], expected, atol=0.51)


def test_a_bundle_without_a_preview_map_has_no_preview(backend, make_bundle) -> None:
    seen = []
    with Pipeline.load(make_bundle(preview=None).root) as pipeline:
        pipeline.generate(PROMPT, num_frames=1, on_step=lambda event: seen.append(event.preview()))
    assert seen == [None] * 4


@pytest.mark.parametrize("error", [CancelledError("enough"), ZeroDivisionError(), KeyboardInterrupt()])
def test_what_on_step_raises_stops_the_run_and_leaves_no_graph_in_use(backend, pipeline, error) -> None:
    def stop(event: Any) -> None:
        if event.step == 2:
            raise error

    with pytest.raises(type(error)):
        pipeline.generate(PROMPT, on_step=stop)
    assert backend.log[-2:] == [("run", "denoiser")] * 2 and backend.log[-3] == ("open", "denoiser")
    assert in_use(pipeline) == 0
    assert pipeline.generate(PROMPT).frames.shape == (9, 32, 48, 3)


def test_a_stream_is_lazy(backend, pipeline) -> None:
    stream = pipeline.stream(PROMPT)
    assert backend.log == [] and stream.plan.num_frames == 9
    assert next(stream).shape == (1, 32, 48, 3)
    assert backend.log[-1] == ("run", "vae_decoder_first")
    assert [len(chunk) for chunk in stream] == [4, 4]
    assert set(stream.times.seconds) == {"text_encoder", "denoiser", "vae_decoder"}


def test_a_wrong_request_is_refused_before_anything_is_opened(backend, pipeline) -> None:
    with pytest.raises(RequestError, match="multiple of 16"):
        pipeline.stream(PROMPT, height=33)
    with pytest.raises(RequestError, match=r"unknown parameter hight, steps; there are: prompt, .*num_frames"):
        pipeline.generate(PROMPT, hight=32, steps=5)
    with pytest.raises(RequestError, match=r"unknown parameter device; there are: backend, precision, threads"):
        Pipeline.load(pipeline.bundle.root, device="cpu")
    assert backend.log == []


def test_planning_opens_no_graph_and_says_what_generate_does(backend, pipeline) -> None:
    plan = pipeline.plan(PROMPT, seed=4)
    assert backend.log == [] and plan.backend == f"numpy {np.__version__}"
    assert pipeline.generate(PROMPT, seed=4).plan == plan


def test_a_stream_given_up_halfway_leaves_no_graph_in_use(backend, pipeline, keeps_nothing_loaded) -> None:
    stream = pipeline.stream(PROMPT)
    next(stream)
    assert in_use(pipeline) == 2
    stream.close()
    assert in_use(pipeline) == 0 and backend.all_closed()


def test_closing_between_two_chunks_of_a_stream_ends_it(backend, pipeline) -> None:
    stream = pipeline.stream(PROMPT)
    next(stream)
    pipeline.close()
    with pytest.raises(CancelledError, match="closed"):
        next(stream)
    assert backend.all_closed()


def test_closing_between_two_steps_ends_the_run(backend, pipeline) -> None:
    with pytest.raises(CancelledError, match="closed"):
        pipeline.generate(PROMPT, on_step=lambda event: pipeline.close())
    assert backend.log.count(("run", "denoiser")) == 1 and backend.all_closed()


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder_next"])
def test_closing_from_another_thread_stops_what_runs_and_frees_it(backend, pipeline, role: str) -> None:
    backend.hangs_in = role
    with ThreadPoolExecutor(1) as thread:
        video = thread.submit(pipeline.generate, PROMPT)
        assert backend.hanging.wait(60)
        pipeline.close()
        with pytest.raises(CancelledError):
            video.result()
    assert backend.all_closed()


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


def test_a_stream_is_given_up_at_the_end_of_its_with(backend, pipeline, keeps_nothing_loaded) -> None:
    with pipeline.stream(PROMPT) as stream:
        next(stream)
        assert in_use(pipeline) == 2
    assert in_use(pipeline) == 0 and backend.all_closed()


def test_each_stage_is_announced_before_it_opens_a_graph(backend, pipeline) -> None:
    seen = []
    pipeline.generate(PROMPT, on_stage=lambda stage: seen.append((stage, len(backend.log))))
    positions = [ONE_VIDEO.index(("open", role)) for role in ("text_encoder", "denoiser", "vae_features_first")]
    assert seen == list(zip(("text_encoder", "denoiser", "vae_decoder"), positions, strict=True))


@pytest.mark.parametrize("frames", [3, 5])
def test_another_number_of_frames_than_the_plan_says_is_refused(backend, pipeline, monkeypatch, frames: int) -> None:
    def too_few_or_many(self: Any, features: Any, **caches: Any) -> Any:
        return {"frames": pixels(features, frames), **caches}

    monkeypatch.setattr(NumpySession, "_vae_decoder_next", too_few_or_many)
    with pytest.raises(ShapeError, match=r"the decoder gave .* the plan says"):
        pipeline.generate(PROMPT)
    assert in_use(pipeline) == 0


def test_running_out_of_memory_anywhere_in_a_run_says_what_to_lower(backend, pipeline, monkeypatch) -> None:
    def exhausted(*_: Any) -> Any:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("mutoscope.running.stages.standard_normals", exhausted)
    with pytest.raises(OutOfMemoryError, match="Unable to allocate 9 GiB; ask for a smaller height"):
        pipeline.generate(PROMPT)


def test_a_prompt_given_twice_or_not_at_all_is_refused(backend, pipeline) -> None:
    with pytest.raises(RequestError, match="given twice"):
        pipeline.plan(PROMPT, prompt=PROMPT)
    with pytest.raises(RequestError, match="prompt must be one string"):
        pipeline.plan()
    assert pipeline.plan(prompt=PROMPT).prompt == PROMPT


def test_an_unknown_option_of_save_is_refused(backend, pipeline, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown parameter quality; there are: codec"):
        pipeline.generate(PROMPT, num_frames=1).save(tmp_path / "video.npy", quality=3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"threads": 0}, "threads must be a whole number"),
        ({"branches_per_call": 3}, "branches_per_call must be a whole number"),
        ({"precision": "int8"}, "precision must be one of the bundle's: fp32; got 'int8'"),
        ({"tile": "16x24"}, "tile must be height x width in pixels, .* multiple of 8 and at least 24, .* got '16x24'"),
        ({"tile": "32"}, "tile must be height x width"),
    ],
)
def test_options_are_checked_when_the_bundle_is_loaded(backend, make_bundle, options: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        Pipeline.load(make_bundle().root, **options)


def test_sessions_get_the_threads_that_the_plan_names(backend, make_bundle, monkeypatch) -> None:
    given: list[SessionOptions] = []
    opened = backend.open

    def note(graph: Path, options: SessionOptions) -> Session:
        given.append(options)
        return opened(graph, options)

    monkeypatch.setattr(backend, "open", note)
    with Pipeline.load(make_bundle().root) as pipeline:
        plan = pipeline.generate(PROMPT).plan
    assert {options.threads for options in given} == {plan.threads}


@pytest.mark.parametrize("fits", [True, False])
def test_two_threads_get_the_videos_that_each_would_get_alone(backend, pipeline, monkeypatch, fits: bool) -> None:
    monkeypatch.setattr(mutoscope.planning.memory_plan, "SHARE_FOR_GOOD", 0.25 if fits else 0)
    alone = [pipeline.generate(PROMPT, seed=seed).frames for seed in range(8)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda seed: pipeline.generate(PROMPT, seed=seed).frames, range(8)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(alone[0], alone[1])
    assert in_use(pipeline) == 0 and (fits or backend.all_closed())


def test_nothing_of_a_request_stays_in_the_pipeline(backend, pipeline) -> None:
    before = dict(vars(pipeline))
    video = pipeline.generate(PROMPT, seed=11)
    plan = weakref.ref(video.plan)
    del video
    gc.collect()
    assert vars(pipeline) == before and plan() is None
