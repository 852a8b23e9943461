"""Which graphs are open, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import mutoscope
import pytest
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.manifest import Expert, Graph, GraphTensor
from mutoscope.errors import BundleError
from mutoscope_engines.onnxruntime.cpu import OnnxRuntimeCpu
from mutoscope_engines.session import EngineWanted, Figures
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, in_parts, interfaces, onnx_file, tensors
from tests.runtime.running.functions import PROMPT

MB = 10**6
REQUEST = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "seed": 0}


def test_after_a_preload_a_video_opens_no_graph(wan_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_graph = OnnxRuntimeCpu.open

    def watched(self: OnnxRuntimeCpu, graph: Path, *rest: Any) -> Any:
        opened.append(graph.parent.name)
        return open_graph(self, graph, *rest)

    monkeypatch.setattr(OnnxRuntimeCpu, "open", watched)
    with mutoscope.Pipeline.load(wan_bundle, backend="onnxruntime") as pipeline:
        plan = pipeline.preload("a red circle", **REQUEST)
        preloaded = list(opened)
        pipeline.generate("a red circle", **REQUEST)
    assert plan.memory.keep_loaded
    assert {"text_encoder", "denoiser"} < set(preloaded)
    assert opened == preloaded


def changed(ends: tuple[GraphTensor, ...], name: str, **fields: Any) -> tuple[GraphTensor, ...]:
    return tuple(msgspec.structs.replace(each, **fields) if each.name == name else each for each in ends)


def rewritten(bundle: Bundle, graph: Graph, **ends: tuple[GraphTensor, ...]) -> Bundle:
    """The bundle with a graph whose file has other inputs or outputs than its manifest says, and the hash it says."""
    (bundle.root / graph.file).write_bytes(onnx_file(msgspec.structs.replace(graph, **ends)))
    return write_manifest(bundle.root, bundle.manifest)


@pytest.mark.parametrize(
    ("end", "edit", "said"),
    [
        ("outputs", lambda ends: ends[:1], ", and its manifest says next_state float32"),
        ("outputs", lambda ends: (*ends, *tensors(more=(1,))), "the outputs of denoiser/model.onnx are "),
        (
            "outputs",
            lambda ends: changed(ends, "velocity_peak", shape=(1,)),
            "velocity_peak float32 [1], and its manifest says next_state",
        ),
        ("inputs", lambda ends: ends[1:], "the inputs of denoiser/model.onnx are state float32"),
        ("inputs", lambda ends: changed(ends, "timestep", dtype="int64"), "timestep int64 [1]"),
        ("inputs", lambda ends: changed(ends, "state", shape=("K", 4, "F", "h")), "state float32 [K, 4, F, h]"),
        ("inputs", lambda ends: changed(ends, "latents", shape=(8, "F", "h", "w")), "latents float32 [8, F, h, w]"),
    ],
)
def test_a_session_that_is_not_what_its_manifest_says_is_refused_and_closed(
    backend: FakeBackend,
    load: Callable[..., mutoscope.Pipeline],
    make_bundle: Callable[..., Bundle],
    end: str,
    edit: Callable[[Any], Any],
    said: str,
) -> None:
    bundle = make_bundle()
    [denoiser] = bundle.manifest.graphs_of("denoiser", "fp32")
    bundle = rewritten(bundle, denoiser, **{end: edit(getattr(denoiser, end))})
    with load(bundle) as pipeline:
        with pytest.raises(BundleError) as refusal:
            pipeline.generate(PROMPT)
        assert [session.closed for session in backend.sessions if session.name == "denoiser"] == [True]
    assert said in str(refusal.value)
    assert refusal.value.exit_code == 3
    assert (backend.open_sessions, backend.log.count(("run", "denoiser"))) == (0, 0)


def test_where_the_second_part_of_a_graph_is_refused_the_first_is_closed_with_it(
    backend: FakeBackend, load: Callable[..., mutoscope.Pipeline], make_bundle: Callable[..., Bundle]
) -> None:
    bundle = in_parts(make_bundle)
    second = bundle.manifest.graphs_of("denoiser", "fp32")[1]
    bundle = rewritten(bundle, second, outputs=second.outputs[:1])
    with load(bundle) as pipeline:
        with pytest.raises(BundleError, match=r"the outputs of denoiser/2\.onnx are "):
            pipeline.generate(PROMPT)
        assert [session.closed for session in backend.sessions if session.name == "denoiser"] == [True, True]


def test_two_precisions_may_share_a_file(
    backend: FakeBackend, load: Callable[..., mutoscope.Pipeline], make_bundle: Callable[..., Bundle]
) -> None:
    ends = interfaces()
    bundle = make_bundle(graphs=(*graphs(ends), *graphs({"denoiser": ends["denoiser"]}, "int8")))
    with load(bundle, precision="int8") as pipeline:
        assert pipeline.generate(PROMPT).frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize(("streamable", "streamed"), [((30, 30), (20, 20)), ((60, 0), (40, 0)), ((15, 45), (10, 30))])
def test_the_parts_of_a_graph_stream_in_proportion_to_what_each_can(
    make_bundle: Callable[..., Bundle], streamable: tuple[int, int], streamed: tuple[int, int]
) -> None:
    """They have 50 MB each, together 40 MB more than are allowed."""

    def figures(graph: Path, wanted: EngineWanted) -> Figures:
        if graph.parent.name != "denoiser":
            return Figures(0, activation_bytes=0)
        return Figures(50 * MB, streamable[int(graph.stem) - 1] * MB, activation_bytes=0)

    backend = FakeBackend(figures=figures, memory=1000 * MB)
    with mutoscope.Pipeline.load(in_parts(make_bundle).root, backend=backend) as pipeline:
        option = pipeline.plan(PROMPT).memory.options["denoise"]
    with mutoscope.Pipeline.load(
        in_parts(make_bundle).root, backend=backend, memory_limit=60 * MB + option.buffer_bytes
    ) as pipeline:
        pipeline.generate(PROMPT)
    opened = [each.options.streamed_weight_bytes for each in backend.sessions if each.name == "denoiser"]
    assert tuple(opened) == tuple(count * MB for count in streamed)


def test_each_expert_is_opened_with_the_weights_streamed_that_its_plan_says(make_bundle: Callable[..., Bundle]) -> None:
    ends = interfaces()
    experts = (Expert(role="denoiser", above=500.0), Expert(role="denoiser_low"))
    weights = {"denoiser": (30 * MB, 0), "denoiser_low": (50 * MB, 45 * MB)}

    def figures(graph: Path, wanted: EngineWanted) -> Figures:
        return Figures(*weights.get(graph.parent.name, (0, 0)), activation_bytes=0)

    bundle = make_bundle(experts=experts, graphs=graphs(ends | {"denoiser_low": ends["denoiser"]}))
    backend = FakeBackend(figures=figures)
    with mutoscope.Pipeline.load(bundle.root, backend=backend, memory_limit=31 * MB) as pipeline:
        options = pipeline.generate(PROMPT, num_inference_steps=6).plan.memory.options
    streamed = {each.name: each.options.streamed_weight_bytes for each in backend.sessions if each.name in weights}
    assert streamed == {role: options[role].streamed_bytes for role in weights}
    assert streamed["denoiser"] == 0 < streamed["denoiser_low"]
