"""What a video takes on a device: buffers by the shapes of the manifest, the rest by what the backend knows."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replaced
from mutoscope.bundle import bundle as b
from mutoscope.bundle import manifest as m
from mutoscope.bundle.contract import DECODE, ROLES
from mutoscope.errors import BackendUnavailableError, RequestError
from mutoscope.planning.execution import Execution, planned_memory
from mutoscope.planning.footprints import Sizes, activations_of, buffer_bytes, everywhere, stages_of
from mutoscope.planning.memory_plan import MemoryPlan
from mutoscope_engines.session import Backend, EngineWanted, Figures, SessionOptions
from mutoscope_engines.symbols import sized
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces, tensors

DECODER = [name for name, role in ROLES.items() if role.stage == DECODE]

SIZES = Sizes(branches=2, lengths={"L": 10}, latents_shape=(4, 3, 8, 6), state_rows=2)
WEIGHTS = {
    "text_encoder": 1000, "denoiser": 3000, "vae_features_first": 10, "vae_features_next": 20, "vae_decoder_first": 100,
    "vae_decoder_next": 200,
}  # fmt: skip
ENDS = interfaces(
    feature_channels=7, feature_caches=(), decoder_caches=((2, 5, "2*h", "w"),)
)  # fmt: skip
# The sizes for which the activations below were found.
LARGEST = {
    "text_encoder": {"B": 2, "L": 20},
    "denoiser": {"B": 2, "L": 10, "F": 6, "h": 8, "w": 6, "K": 2},
} | {role: {"h": 16, "w": 6} for role in DECODER}
ACTIVATIONS = {
    "text_encoder": 400, "denoiser": 8000, "vae_features_first": 40, "vae_features_next": 40, "vae_decoder_first": 600,
    "vae_decoder_next": 900,
}  # fmt: skip


def engines(*, most_branches: int = 2, streamable: int = 0, known: bool = True, **pretends: Any) -> FakeBackend:
    """Engines for one or two branches, some of which can stream. It has no graph to open: a plan opens none."""

    def figures(graph: Path, wanted: EngineWanted) -> Figures:
        role = graph.parent.name
        if role == "denoiser" and wanted.shapes and wanted.shapes["prompt_embeds"][0] > most_branches:
            raise BackendUnavailableError("no engine for two branches; build one")
        if not known:
            return Figures(WEIGHTS[role])
        largest = {tensor.name: sized(tensor.shape, LARGEST[role]) for tensor in ENDS[role][0]}
        return Figures(WEIGHTS[role], streamable if role == "denoiser" else 0, ACTIVATIONS[role], largest)

    return FakeBackend({}, **{"figures": figures} | pretends)


HERE = everywhere(engines(), "fp32")


@pytest.fixture
def bundle(make_bundle) -> b.Bundle:
    return make_bundle(graphs=graphs(ENDS))


def test_buffers_are_counted_by_hand_and_activations_in_proportion(bundle) -> None:
    encoder, denoiser, decoder = (stage.options[0] for stage in stages_of(bundle, HERE, SIZES, (2, 1)))
    assert encoder.buffer_bytes == 2 * (2 * 10 * 8) + 2 * 10 * 6 * 4
    state, numbers = 2 * 4 * 3 * 8 * 6, 1 + 2 + 2 * 2 + 2  # timestep, guidance_weights, solver_a, solver_b
    assert denoiser.buffer_bytes == 4 * (4 * 3 * 8 * 6 + state + numbers + 2 * 10 * 6 + state + 1)
    cache, latents, features, frame = 2 * 5 * 16 * 6 * 4, 4 * 4 * 8 * 6, 4 * 7 * 8 * 6, 64 * 48 * 3
    of_features = 2 * (latents + features)
    assert decoder.buffer_bytes == of_features + (features + frame + cache) + (features + cache + 4 * frame + cache)
    assert (encoder.weight_bytes, denoiser.weight_bytes, decoder.weight_bytes) == (1000, 3000, 330)
    assert encoder.activation_bytes == 400 // 2  # 10 of 20 tokens
    assert denoiser.activation_bytes == 8000 // 2  # 3 of 6 frames
    assert decoder.activation_bytes == 900 // 2  # 8 of 16 rows, of the graph that takes more
    assert all(option.activations_known for option in (encoder, denoiser, decoder))


def test_what_passes_between_parts_takes_turns_in_two_places(bundle) -> None:
    rows = tuple(tensors(**{f"hidden_{number}": (1, "B*F*h//2*w//2", 6)})[0] for number in range(1, 5))
    given = {tensor.name: tensor for tensor in ENDS["denoiser"][0]}
    latents, prompt = given["latents"], given["prompt_embeds"]
    next_state = ENDS["denoiser"][1][:1]
    kept = tensors(kept=("B", "L", 6))[0]  # of the first part, read by all
    ends = [((latents, prompt), (kept, rows[0])), *(((kept, given), (made,)) for given, made in pairwise(rows))]
    ends.append(((kept, rows[-1]), next_state))
    parts = tuple(
        m.Graph(role="denoiser", precision="fp32", file=f"denoiser/{number}", inputs=given, outputs=made, part=number)
        for number, (given, made) in enumerate(ends, start=1)
    )
    symbols = SIZES.symbols("denoiser", 2, SIZES.picture)
    hidden, text = 4 * (2 * 3 * 4 * 3) * 6, 4 * 2 * 10 * 6
    outside = 4 * (4 * 3 * 8 * 6) + text + 4 * 2 * (4 * 3 * 8 * 6)
    assert buffer_bytes(parts, symbols) == outside + text + 2 * hidden
    assert buffer_bytes(parts[:1], symbols) == 4 * (4 * 3 * 8 * 6) + 2 * text + hidden


def test_a_part_without_the_latents_grows_with_what_it_is_given(bundle) -> None:
    graph = m.Graph(
        role="denoiser", precision="fp32", file="denoiser/2", part=2,
        inputs=tensors(hidden=(1, "B*F*h//2*w//2", 6), prompt_embeds=("B", "L", 6)), outputs=ENDS["denoiser"][1],
    )  # fmt: skip
    largest = {"hidden": (1, 4 * 2 * 3 * 4 * 3, 6), "prompt_embeds": (2, 10, 6)}
    symbols = SIZES.symbols("denoiser", 2, SIZES.picture)
    assert activations_of(graph, symbols, Figures(0, 0, 8000, largest)) == 2000


def test_in_tiles_the_larger_part_counts_and_what_is_put_together_lies_on_the_host(bundle) -> None:
    decoder = stages_of(bundle, HERE, SIZES, (2,))[-1]
    whole, two = decoder.options[:2]
    assert [option.name for option in decoder.options[:2]] == ["whole", "in 2 tiles of 40x48"]
    assert (whole.window, two.window) == ((8, 6), (5, 6))
    assert (two.weight_bytes, two.activation_bytes) == (300, math.ceil(900 * 5 * 6 / (16 * 6)))
    cache, features, frame = 2 * 5 * 10 * 6 * 4, 4 * 7 * 5 * 6, 40 * 48 * 3
    buffers = (features + frame + cache) + (features + cache + 4 * frame + cache)
    held = 3 * (4 * 7 * 8 * 6) + 9 * (64 * 48 * 3)
    assert (two.host_bytes, whole.host_bytes) == (held, 0)
    assert two.buffer_bytes == buffers + held  # this backend is no device: its memory is the host's
    assert (whole.keepable, two.keepable) == (True, False)
    peaks = [option.peak_bytes - option.host_bytes for option in decoder.options]
    assert peaks == sorted(peaks, reverse=True)


def test_on_a_device_what_lies_on_the_host_does_not_count(bundle) -> None:
    of_host = stages_of(bundle, HERE, SIZES, (2,))[-1].options[1]
    of_device = stages_of(bundle, everywhere(engines(on_device=True), "fp32"), SIZES, (2,))[-1].options[1]
    assert of_host.peak_bytes - of_device.peak_bytes == of_device.host_bytes == of_host.host_bytes > 0


def test_a_tile_that_is_asked_for_is_the_only_way(bundle) -> None:
    (option,) = stages_of(bundle, HERE, SIZES, (2,), tile=(7, 6))[-1].options
    assert (option.name, option.window) == ("in 2 tiles of 40x48", (5, 6))


def test_an_engine_for_tiles_alone_is_a_way_too(bundle) -> None:
    known = engines()

    def figures(graph: Path, wanted: EngineWanted) -> Figures:
        if wanted.shapes.get("features", (0,))[-1] > 4:
            raise BackendUnavailableError("no engine for the whole")
        return known.figures(graph, wanted)

    for_tiles = everywhere(engines(figures=figures), "fp32")
    assert [option.window for option in stages_of(bundle, for_tiles, SIZES, (2,))[-1].options[:2]] == [(5, 4), (4, 4)]


def test_a_denoiser_may_take_its_branches_in_turns_or_stream(bundle) -> None:
    _, denoiser, _ = stages_of(bundle, everywhere(engines(streamable=2000), "fp32"), SIZES, (2, 1))
    assert [(option.name, option.branches_per_call, option.streamable_bytes) for option in denoiser.options] == [
        ("whole", 2, 0),
        ("1 branch in a call", 1, 0),
        ("whole, weights streamed", 2, 2000),
        ("1 branch in a call, weights streamed", 1, 2000),
    ]
    assert [option.calls_per_step for option in denoiser.options] == [1, 2, 1, 2]
    assert denoiser.options[1].activation_bytes == denoiser.options[0].activation_bytes / 2


def test_clips_count_in_the_memory_that_they_lie_in(bundle) -> None:
    for on_device, counted in ((False, "clip_bytes"), (True, "host_bytes")):
        plain, with_clips = (
            stages_of(bundle, everywhere(engines(on_device=on_device), "fp32"), replace(SIZES, clip_bytes=size), (2,))
            for size in (0, 700)
        )
        for before, after in zip(plain, with_clips, strict=True):
            for one, other in zip(before.options, after.options, strict=True):
                assert getattr(other, counted) - getattr(one, counted) == 700
                assert other.peak_bytes - one.peak_bytes == (0 if on_device else 700)


def test_an_engine_for_one_branch_alone_is_a_way_too(bundle) -> None:
    _, denoiser, _ = stages_of(bundle, everywhere(engines(most_branches=1), "fp32"), SIZES, (2, 1))
    assert [option.branches_per_call for option in denoiser.options] == [1]


def test_without_any_engine_its_absence_is_told(bundle) -> None:
    with pytest.raises(BackendUnavailableError, match="no engine for two branches"):
        stages_of(bundle, everywhere(engines(most_branches=1), "fp32"), SIZES, (2,))


def test_what_the_backend_does_not_know_is_marked(bundle) -> None:
    options = [
        option
        for stage in stages_of(bundle, everywhere(engines(known=False), "fp32"), SIZES, (2,))
        for option in stage.options
    ]
    assert not any(option.activations_known for option in options) and {
        option.activation_bytes for option in options
    } == {0}


def execution(backend: Backend, limit: int) -> Execution:
    return Execution(everywhere(backend, "fp32"), (2, 1), limit, SessionOptions(threads=1), ())


def planned(bundle: b.Bundle, frames: int, limit: int, **pretends: Any) -> MemoryPlan:
    sizes = replace(SIZES, latents_shape=(4, (frames - 1) // 4 + 1, 8, 6))
    return planned_memory(execution(engines(**pretends), limit), bundle, sizes, frames)


def test_without_figures_of_its_own_a_backend_takes_weights_as_large_as_the_bundle_stores_them(bundle) -> None:
    heavy = tuple(replaced(graph, weight_bytes=1000) for graph in bundle.manifest.graphs)
    bundle = replace(bundle, manifest=replaced(bundle.manifest, graphs=heavy))
    plain = everywhere(FakeBackend({}), "fp32")
    _, denoiser, decoder = (stage.options[0] for stage in stages_of(bundle, plain, SIZES, (2,)))
    sizes = {graph.role: bundle.path(graph.file).stat().st_size for graph in heavy}
    assert denoiser.weight_bytes == 1000 + sizes["denoiser"]
    assert decoder.weight_bytes == sum(1000 + sizes[role] for role in DECODER)


def test_what_does_not_fit_however_short_is_refused_with_the_limit_that_would_do(bundle) -> None:
    stages = stages_of(bundle, everywhere(engines(on_device=True), "fp32"), SIZES, (1,))
    least = min(option.peak_bytes for option in stages[-1].options)  # of the decoder, which takes more than the others
    complaint = r"decoding needs at least .* This would fit: memory_limit=[0-9_]+$"
    with pytest.raises(RequestError, match=complaint) as refusal:
        planned(bundle, 1, least - 1, on_device=True)
    named = int(str(refusal.value).rpartition("=")[2])
    assert least <= named < least + 10 and planned(bundle, 1, named, on_device=True).peak_bytes <= named


def test_what_a_shorter_video_would_make_fit_is_refused_with_the_longest_that_does(bundle) -> None:
    limit = 150_000
    with pytest.raises(RequestError, match=r"denoising needs at least .*, or num_frames=\d+$") as refusal:
        planned(bundle, 241, limit)
    longest = int(str(refusal.value).rpartition("=")[2])
    assert planned(bundle, longest, limit).peak_bytes <= limit
    with pytest.raises(RequestError):
        planned(bundle, longest + 4, limit)


def test_a_plan_looks_once_at_what_its_backend_has_on_disk(bundle) -> None:
    class Counting(FakeBackend):
        looks = 0

        def snapshot(self) -> Backend:
            type(self).looks += 1
            return engines()

    backend = Counting({}, figures=lambda graph, wanted: pytest.fail("asked beside the snapshot"))
    sizes = replace(SIZES, latents_shape=(4, 61, 8, 6))
    with pytest.raises(RequestError, match="num_frames="):  # after it tried shorter ones
        planned_memory(execution(backend, 150_000), bundle, sizes, 241)
    assert Counting.looks == 1


def test_less_memory_takes_the_branches_in_turns(bundle) -> None:
    assert planned(bundle, 241, 10**9).options["denoise"].branches_per_call == 2
    assert planned(bundle, 241, 10**9).keep_loaded
    both = planned(bundle, 241, 10**9).options["denoise"].peak_bytes
    assert planned(bundle, 241, both - 1).options["denoise"].branches_per_call == 1
