"""What a video takes on a device: buffers by the shapes of the manifest, the rest by what the backend knows."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replaced
from mutoscope.bundle import bundle as b
from mutoscope.errors import BackendUnavailableError, RequestError
from mutoscope.families import load_family
from mutoscope.planning.execution import Execution, planned_memory
from mutoscope.planning.footprints import GRAPHS, Sizes, _activations, buffer_bytes, everywhere, stages_of
from mutoscope.planning.memory_plan import MemoryPlan
from mutoscope.request import RuntimeOptions
from mutoscope_engines.session import Backend, EngineWanted, Figures, Session, SessionOptions

SIZES = Sizes(branches=2, text_tokens=10, latents_shape=(4, 3, 8, 6), state_rows=2)
WEIGHTS = {
    "text_encoder": 1000, "denoiser": 3000, "vae_features_first": 10, "vae_features_next": 20, "vae_decoder_first": 100,
    "vae_decoder_next": 200,
}  # fmt: skip
LARGEST = {
    "text_encoder": {"input_ids": (2, 20)},
    "denoiser": {"latents": (4, 6, 8, 6), "prompt_embeds": (2, 10, 6)},
    "vae_features_first": {"latents": (1, 4, 1, 16, 6)},
    "vae_features_next": {"latents": (1, 4, 1, 16, 6)},
    "vae_decoder_first": {"features": (1, 7, 16, 6)},
    "vae_decoder_next": {"features": (1, 7, 16, 6), "cache_0": (2, 5, 32, 6)},
}
ACTIVATIONS = {
    "text_encoder": 400, "denoiser": 8000, "vae_features_first": 40, "vae_features_next": 40, "vae_decoder_first": 600,
    "vae_decoder_next": 900,
}  # fmt: skip


def tensors(**shapes: tuple[Any, ...]) -> tuple[b.GraphTensor, ...]:
    dtypes = {"input_ids": "int64", "frames": "uint8", "cache_0": "bfloat16", "next_cache_0": "bfloat16"}
    return tuple(
        b.GraphTensor(name=name, dtype=dtypes.get(name, "float32"), shape=shape) for name, shape in shapes.items()
    )


ENDS = {
    "text_encoder": (tensors(input_ids=("B", "L")), tensors(prompt_embeds=("B", "L", 6))),
    "denoiser": (
        tensors(latents=(4, "F", "h", "w"), prompt_embeds=("B", "L", 6)),
        tensors(next_state=("K", 4, "F", "h", "w")),
    ),
    "vae_features_first": (tensors(latents=(1, 4, 1, "h", "w")), tensors(features=(1, 7, "h", "w"))),
    "vae_features_next": (tensors(latents=(1, 4, 1, "h", "w")), tensors(features=(1, 7, "h", "w"))),
    "vae_decoder_first": (
        tensors(features=(1, 7, "h", "w")),
        tensors(frames=(1, "8*h", "8*w", 3), cache_0=(2, 5, "2*h", "w")),
    ),
    "vae_decoder_next": (
        tensors(features=(1, 7, "h", "w"), cache_0=(2, 5, "2*h", "w")),
        tensors(frames=(4, "8*h", "8*w", 3), next_cache_0=(2, 5, "2*h", "w")),
    ),
}


class Engines(Backend):
    """Engines for one or two branches, some of which can stream."""

    name = "engines"

    def __init__(self, *, most_branches: int = 2, streamable: int = 0, known: bool = True) -> None:
        self.most_branches, self.streamable, self.known = most_branches, streamable, known

    def unavailable_because(self) -> str | None:
        return None

    def version(self) -> str:
        return "engines 1"

    def supports(self, precision: str) -> bool:
        return True

    def open(self, graph: Path, options: SessionOptions) -> Session:
        raise AssertionError("a plan opens no graph")

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        role = graph.parent.name
        if role == "denoiser" and wanted.shapes and wanted.shapes["prompt_embeds"][0] > self.most_branches:
            raise BackendUnavailableError("no engine for two branches; mutoscope build --branches 2")
        if not self.known:
            return Figures(WEIGHTS[role])
        return Figures(WEIGHTS[role], self.streamable if role == "denoiser" else 0, ACTIVATIONS[role], LARGEST[role])


HERE = everywhere(Engines(), "fp32")


@pytest.fixture
def bundle(make_bundle) -> b.Bundle:
    graphs = tuple(
        b.Graph(role=role, precision="fp32", file=f"{role}/model.onnx", inputs=inputs, outputs=outputs)
        for role, (inputs, outputs) in ENDS.items()
    )
    return make_bundle(graphs=graphs)


def test_buffers_are_counted_by_hand_and_activations_in_proportion(bundle) -> None:
    encoder, denoiser, decoder = (stage.ways[0] for stage in stages_of(bundle, HERE, SIZES, (2, 1)))
    assert encoder.buffer_bytes == 2 * 10 * 8 + 2 * 10 * 6 * 4
    assert denoiser.buffer_bytes == 4 * (4 * 3 * 8 * 6 + 2 * 10 * 6 + 2 * 4 * 3 * 8 * 6)
    cache, latents, features, frame = 2 * 5 * 16 * 6 * 2, 4 * 4 * 8 * 6, 4 * 7 * 8 * 6, 64 * 48 * 3
    of_features = 2 * (latents + features)
    assert decoder.buffer_bytes == of_features + (features + frame + cache) + (features + cache + 4 * frame + cache)
    assert (encoder.weight_bytes, denoiser.weight_bytes, decoder.weight_bytes) == (1000, 3000, 330)
    assert encoder.activation_bytes == 400 // 2  # 10 of 20 tokens
    assert denoiser.activation_bytes == 8000 // 2  # 3 of 6 frames
    assert decoder.activation_bytes == 900 // 2  # 8 of 16 rows, of the graph that takes more
    assert all(way.activations_known for way in (encoder, denoiser, decoder))


def test_what_passes_between_parts_takes_turns_in_two_places(bundle) -> None:
    rows = tuple(tensors(**{f"hidden_{number}": (1, "B*F*h//2*w//2", 6)})[0] for number in range(1, 5))
    latents, prompt = ENDS["denoiser"][0]
    kept = tensors(kept=("B", "L", 6))[0]  # of the first part, read by all
    ends = [((latents, prompt), (kept, rows[0])), *(((kept, given), (made,)) for given, made in pairwise(rows))]
    ends.append(((kept, rows[-1]), ENDS["denoiser"][1]))
    parts = tuple(
        b.Graph(role="denoiser", precision="fp32", file=f"denoiser/{number}", inputs=given, outputs=made, part=number)
        for number, (given, made) in enumerate(ends, start=1)
    )
    symbols = SIZES.symbols("denoiser", 2, SIZES.picture)
    hidden, text = 4 * (2 * 3 * 4 * 3) * 6, 4 * 2 * 10 * 6
    outside = 4 * (4 * 3 * 8 * 6) + text + 4 * 2 * (4 * 3 * 8 * 6)
    assert buffer_bytes(parts, symbols) == outside + text + 2 * hidden
    assert buffer_bytes(parts[:1], symbols) == 4 * (4 * 3 * 8 * 6) + 2 * text + hidden


def test_a_part_without_the_latents_grows_with_what_it_is_given(bundle) -> None:
    graph = b.Graph(
        role="denoiser", precision="fp32", file="denoiser/2", part=2,
        inputs=tensors(hidden=(1, "B*F*h//2*w//2", 6), prompt_embeds=("B", "L", 6)), outputs=ENDS["denoiser"][1],
    )  # fmt: skip
    largest = {"hidden": (1, 4 * 2 * 3 * 4 * 3, 6), "prompt_embeds": (2, 10, 6)}
    symbols = SIZES.symbols("denoiser", 2, SIZES.picture)
    assert _activations(graph, symbols, Figures(0, 0, 8000, largest)) == 2000


def test_in_tiles_the_larger_part_counts_and_what_is_put_together_lies_on_the_host(bundle) -> None:
    decoder = stages_of(bundle, HERE, SIZES, (2,))[-1]
    whole, two = decoder.ways[:2]
    assert [way.name for way in decoder.ways[:2]] == ["whole", "in 2 tiles of 40x48"]
    assert (whole.window, two.window) == ((8, 6), (5, 6))
    assert (two.weight_bytes, two.activation_bytes) == (300, math.ceil(900 * 5 * 6 / (16 * 6)))
    cache, features, frame = 2 * 5 * 10 * 6 * 2, 4 * 7 * 5 * 6, 40 * 48 * 3
    buffers = (features + frame + cache) + (features + cache + 4 * frame + cache)
    held = 3 * (4 * 7 * 8 * 6) + 9 * (64 * 48 * 3)
    assert (two.host_bytes, whole.host_bytes) == (held, 0)
    assert two.buffer_bytes == buffers + held  # this backend is no device: its memory is the host's
    assert (whole.keepable, two.keepable) == (True, False)
    peaks = [way.peak_bytes - way.host_bytes for way in decoder.ways]
    assert peaks == sorted(peaks, reverse=True)


def test_on_a_device_what_lies_on_the_host_does_not_count(bundle, monkeypatch) -> None:
    of_host = stages_of(bundle, HERE, SIZES, (2,))[-1].ways[1]
    monkeypatch.setattr(Engines, "on_device", True)
    of_device = stages_of(bundle, HERE, SIZES, (2,))[-1].ways[1]
    assert of_host.peak_bytes - of_device.peak_bytes == of_device.host_bytes == of_host.host_bytes > 0


def test_a_tile_that_is_asked_for_is_the_only_way(bundle) -> None:
    (way,) = stages_of(bundle, HERE, SIZES, (2,), tile=(7, 6))[-1].ways
    assert (way.name, way.window) == ("in 2 tiles of 40x48", (5, 6))


def test_an_engine_for_tiles_alone_is_a_way_too(bundle) -> None:
    class ForTiles(Engines):
        def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
            if wanted.shapes.get("features", (0,))[-1] > 4:
                raise BackendUnavailableError("no engine for the whole")
            return super().figures(graph, wanted)

    assert [way.window for way in stages_of(bundle, everywhere(ForTiles(), "fp32"), SIZES, (2,))[-1].ways[:2]] == [
        (5, 4),
        (4, 4),
    ]


def test_a_denoiser_may_take_its_branches_in_turns_or_stream(bundle) -> None:
    _, denoiser, _ = stages_of(bundle, everywhere(Engines(streamable=2000), "fp32"), SIZES, (2, 1))
    assert [(way.name, way.branches_per_call, way.streamable_bytes) for way in denoiser.ways] == [
        ("whole", 2, 0),
        ("1 branch in a call", 1, 0),
        ("whole, weights streamed", 2, 2000),
        ("1 branch in a call, weights streamed", 1, 2000),
    ]
    assert denoiser.ways[1].activation_bytes == denoiser.ways[0].activation_bytes / 2


def test_an_engine_for_one_branch_alone_is_a_way_too(bundle) -> None:
    _, denoiser, _ = stages_of(bundle, everywhere(Engines(most_branches=1), "fp32"), SIZES, (2, 1))
    assert [way.branches_per_call for way in denoiser.ways] == [1]


def test_without_any_engine_its_absence_is_told(bundle) -> None:
    with pytest.raises(BackendUnavailableError, match="mutoscope build --branches 2"):
        stages_of(bundle, everywhere(Engines(most_branches=1), "fp32"), SIZES, (2,))


def test_what_the_backend_does_not_know_is_marked(bundle) -> None:
    ways = [
        way for stage in stages_of(bundle, everywhere(Engines(known=False), "fp32"), SIZES, (2,)) for way in stage.ways
    ]
    assert not any(way.activations_known for way in ways) and {way.activation_bytes for way in ways} == {0}


def execution(backend: Backend, limit: int) -> Execution:
    return Execution(everywhere(backend, "fp32"), (2, 1), limit, SessionOptions(threads=1), ())


def planned(bundle: b.Bundle, frames: int, limit: int) -> MemoryPlan:
    sizes = replace(SIZES, latents_shape=(4, (frames - 1) // 4 + 1, 8, 6))
    return planned_memory(execution(Engines(), limit), bundle, sizes, load_family("wan"), frames)


def peak(bundle: b.Bundle, stage: str) -> int:
    """Of one branch at `SIZES`, in the way that takes least."""
    stages = {stage.name: stage for stage in stages_of(bundle, HERE, SIZES, (1,))}
    return min(way.peak_bytes for way in stages[stage].ways)


def test_without_figures_of_its_own_a_backend_takes_weights_as_large_as_the_bundle_stores_them(bundle) -> None:
    class Plain(Engines):
        figures = Backend.figures

    graphs = tuple(replaced(graph, weight_bytes=1000) for graph in bundle.manifest.graphs)
    bundle = replace(bundle, manifest=replaced(bundle.manifest, graphs=graphs))
    _, denoiser, decoder = (stage.ways[0] for stage in stages_of(bundle, everywhere(Plain(), "fp32"), SIZES, (2,)))
    assert denoiser.weight_bytes == 1000 + len("the graph of the denoiser")
    names = GRAPHS["vae_decoder"]
    assert decoder.weight_bytes == sum(1000 + len(f"the graph of the {name}") for name in names)


def test_what_does_not_fit_however_short_is_refused_with_the_limit_that_would_do(bundle, monkeypatch) -> None:
    monkeypatch.setattr(Engines, "on_device", True)
    least = peak(bundle, "vae_decoder")
    complaint = r"vae_decoder takes at least .* What fits: --memory-limit [0-9.]+kB$"
    with pytest.raises(RequestError, match=complaint) as refusal:
        planned(bundle, 1, least - 1)
    named = round(float(str(refusal.value).rpartition("--memory-limit ")[2].removesuffix("kB")) * 1000)
    assert least <= named < least + 10 and planned(bundle, 1, named).peak_bytes <= named


def test_what_a_shorter_video_would_make_fit_is_refused_with_the_longest_that_does(bundle) -> None:
    limit = 150_000
    with pytest.raises(RequestError, match=r"denoiser takes at least .*, or num_frames=\d+$") as refusal:
        planned(bundle, 241, limit)
    longest = int(str(refusal.value).rpartition("=")[2])
    assert planned(bundle, longest, limit).peak_bytes <= limit
    with pytest.raises(RequestError):
        planned(bundle, longest + 4, limit)


def test_less_memory_takes_the_branches_in_turns(bundle) -> None:
    assert planned(bundle, 241, 10**9).ways["denoiser"].branches_per_call == 2
    assert planned(bundle, 241, 10**9).keep_loaded
    both = planned(bundle, 241, 10**9).ways["denoiser"].peak_bytes
    assert planned(bundle, 241, both - 1).ways["denoiser"].branches_per_call == 1


def test_the_limit_is_read_as_people_write_it(make_bundle) -> None:
    made = make_bundle()
    for text, count in (("8GB", 8 * 10**9), ("7.5 GiB", 7.5 * 2**30), ("300 MB", 3 * 10**8)):
        assert Execution.choose(RuntimeOptions(memory_limit=text), made).memory_limit_bytes == count
    for wrong in ("8", "GB", "-1GB", "0GB", "8PB", "1e3GB"):
        with pytest.raises(RequestError, match="memory_limit must be a size with its unit, such as 8GB"):
            Execution.choose(RuntimeOptions(memory_limit=wrong), made)
