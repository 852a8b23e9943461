"""Which graphs are open, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import mutoscope
import pytest
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.manifest import Graph, GraphTensor
from mutoscope.errors import BundleError
from mutoscope_engines.onnxruntime.cpu import OnnxRuntimeCpu
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces, onnx_file, tensors
from tests.runtime.running.functions import PROMPT

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
        ("outputs", lambda ends: ends[:1], "has other outputs than its manifest says: next_state float32"),
        ("outputs", lambda ends: (*ends, *tensors(more=(1,))), "has other outputs than its manifest says"),
        (
            "outputs",
            lambda ends: changed(ends, "velocity_peak", shape=(1,)),
            "velocity_peak float32 [1], not next_state",
        ),
        ("inputs", lambda ends: ends[1:], "has other inputs than its manifest says: state float32"),
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
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    handed_on = tensors(hidden=(1,))
    parts = [
        Graph(role="denoiser", precision="fp32", file=f"denoiser/{part}.onnx", part=part, inputs=takes, outputs=gives)
        for part, takes, gives in ((1, inputs[:3], handed_on), (2, inputs[:2] + inputs[3:] + handed_on, outputs))
    ]
    others = graphs({role: each for role, each in ends.items() if role != "denoiser"})
    bundle = rewritten(make_bundle(graphs=(*others, *parts)), parts[1], outputs=outputs[:1])
    with load(bundle) as pipeline:
        with pytest.raises(BundleError, match=r"denoiser/2\.onnx has other outputs"):
            pipeline.generate(PROMPT)
        assert [session.closed for session in backend.sessions if session.name == "denoiser"] == [True, True]


def test_two_precisions_may_share_a_file(
    backend: FakeBackend, load: Callable[..., mutoscope.Pipeline], make_bundle: Callable[..., Bundle]
) -> None:
    ends = interfaces()
    bundle = make_bundle(graphs=(*graphs(ends), *graphs({"denoiser": ends["denoiser"]}, "int8")))
    with load(bundle, precision="int8") as pipeline:
        assert pipeline.generate(PROMPT).frames.shape == (9, 32, 48, 3)
