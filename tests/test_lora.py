"""Whole videos with LoRAs: nothing is opened again for another one, and nothing of one is left in the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope import Lora, Pipeline, RequestError
from mutoscope.bulk.remake import read_receipts, remake
from mutoscope.bundle.bundle import Bundle
from mutoscope.cli import main
from mutoscope.making import Observer
from mutoscope.planning.plan import Plan
from mutoscope_engines.backends import load_backend
from mutoscope_engines.difference import psnr_of_mean_square
from safetensors.numpy import save_file

REQUEST: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 3.0, "seed": 5,
}  # fmt: skip
Frames = np.ndarray


@pytest.fixture(scope="module")
def files(wan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two random LoRAs of different ranks; the name of the second has a colon."""
    (form,) = Bundle.open(wan_bundle, verify=False).manifest.lora_forms
    paths = tmp_path_factory.mktemp("loras") / "a.safetensors", tmp_path_factory.mktemp("loras") / "b:0.5"
    for seed, (path, rank) in enumerate(zip(paths, (4, 7), strict=True)):
        random, tensors = np.random.default_rng(seed), {}
        for name, parameter in form.parameters.items():
            if name.startswith("blocks.") and name.endswith(".weight") and len(parameter.shape) == 2:
                rows, columns = parameter.shape
                stem = f"transformer.{name.removesuffix('.weight')}"
                tensors[f"{stem}.lora_A.weight"] = random.standard_normal((rank, columns), np.float32)
                tensors[f"{stem}.lora_B.weight"] = 0.05 * random.standard_normal((rows, rank), np.float32)
        save_file(tensors, path)
    return paths


def decibels(found: Frames, expected: Frames) -> float:
    off = np.square(found.astype(np.float64) - expected).mean()
    return psnr_of_mean_square(float(off))


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("openvino", "bf16-cpu")],
)
def test_a_then_b_then_a_gives_the_frames_of_a_and_without_a_lora_those_of_the_base(
    backend: str, precision: str, wan_bundle: Path, files: tuple[Path, Path]
) -> None:
    pytest.importorskip(backend)
    a, b = (Lora(path) for path in files)
    with Pipeline.load(wan_bundle, backend=backend, precision=precision, threads=2) as pipeline:

        def frames(*loras: Lora) -> Frames:
            return pipeline.generate("a red circle", loras=loras, **REQUEST).frames

        base, with_a, with_b, again = frames(), frames(a), frames(b), frames(a)
        none, half, afterwards = frames(Lora(a.path, 0)), frames(Lora(a.path, 0.5)), frames()
    assert np.array_equal(with_a, again)
    assert np.array_equal(base, afterwards)
    assert decibels(none, base) >= (80 if precision in ("fp32", "int8") else 40)
    assert decibels(with_a, base) < decibels(half, base) < 40
    assert decibels(with_b, with_a) < 40


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_another_lora_of_another_rank_and_strength_opens_nothing(
    backend: str, wan_bundle: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    opened: list[str] = []
    with Pipeline.load(wan_bundle, backend=backend, precision="fp32", threads=2) as pipeline:
        kind = type(load_backend(backend))
        open_graph: Callable[..., Any] = kind.open
        monkeypatch.setattr(
            kind, "open", lambda self, graph, options: opened.append(graph.name) or open_graph(self, graph, options)
        )
        pipeline.generate("a red circle", loras=[Lora(files[0])], **REQUEST)
        assert [name for name in opened if "lora" in name] == ["model-lora.1.onnx", "model-lora.2.onnx"]
        opened.clear()
        pipeline.generate("a red circle", loras=[Lora(files[1], 0.5), Lora(files[0])], **REQUEST)
        assert opened == []


def test_the_bundle_grows_by_the_graphs_alone_which_were_all_compared_with_their_network(wan_bundle: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest  # which also checks every file
    (form,) = manifest.lora_forms
    assert list(dict.fromkeys(graph.precision for graph in form.graphs)) == ["fp32", "int8", "bf16", "bf16-cpu"]
    for precision in manifest.precisions():
        plain = manifest.graphs_of("denoiser", precision)
        with_loras = manifest.graphs_of("denoiser", precision, with_loras=True)
        assert [graph.weight_bytes for graph in with_loras] == [graph.weight_bytes for graph in plain]
        assert [graph.weights for graph in with_loras] == [graph.weights for graph in plain]
        assert {graph.file for graph in with_loras}.isdisjoint(graph.file for graph in plain)
    report = json.loads((wan_bundle / "export_report.json").read_text())
    compared = {file for each in report["graphs"] for file in each["files"] if "-lora" in file}
    assert compared == {graph.file for graph in form.graphs}
    assert not [path for path in (wan_bundle / "denoiser").iterdir() if path.suffix == ".data" and "lora" in path.name]


def test_every_linear_layer_of_the_network_takes_a_lora(wan_bundle: Path) -> None:
    (form,) = Bundle.open(wan_bundle, verify=False).manifest.lora_forms
    layers = {name for name, parameter in form.parameters.items() if "norm" not in name and name.endswith(".weight")}
    assert len(layers) == 27  # ten in each of two blocks; text and time embedding, patches, modulation and output
    for precision in ("fp32", "int8", "bf16", "bf16-cpu"):
        graphs = [graph for graph in form.graphs if graph.precision == precision]
        inputs = [tensor.name for graph in graphs for tensor in graph.inputs]
        assert {name.removesuffix(".lora_a") for name in inputs if name.endswith(".lora_a")} == layers
        assert {name.removesuffix(".lora_b") for name in inputs if name.endswith(".lora_b")} == layers


def test_a_plan_with_loras_makes_the_same_video_again_and_refuses_others(
    wan_bundle: Path, files: tuple[Path, Path]
) -> None:
    loras = [Lora(files[0], 0.5), Lora(files[1])]
    with Pipeline.load(wan_bundle, backend="onnxruntime", precision="fp32") as pipeline:
        plan = Plan.from_dict(json.loads(json.dumps(pipeline.plan("a", loras=loras, **REQUEST).to_dict())))
        assert [(lora.role, lora.file, lora.strength, lora.rank) for lora in plan.loras] == [
            ("denoiser", "a.safetensors", 0.5, 4), ("denoiser", "b:0.5", 1.0, 7),
        ]  # fmt: skip
        assert plan.conditions.lengths["R"] == 11
        assert pipeline.plan(plan.to_request(loras=loras)) == plan
        for others in ([], loras[:1], [Lora(files[0], 0.6), loras[1]]):
            with pytest.raises(RequestError, match=r"loras must be those of the plan, a\.safetensors:0\.5, b:0\.5:1"):
                plan.to_request(loras=others)


def test_a_job_names_loras_beside_the_file_of_jobs_and_its_receipt_makes_the_video_again(
    wan_bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    jobs, out = files[0].parent / "jobs.jsonl", tmp_path / "out"
    job = {"prompt": "a", **REQUEST, "loras": [{"path": files[0].name, "strength": 0.5}]}
    jobs.write_text(json.dumps(job) + "\n" + json.dumps(job | {"loras": []}))
    command = ["batch", str(jobs), str(out), "--bundle", str(wan_bundle), "--backend", "onnxruntime"]
    assert main([*command, "--precision", "fp32", "--ending", ".npy", "--quiet"]) == 0
    first, second = read_receipts(out)
    assert first.facts["sha256"] != second.facts["sha256"]
    with Pipeline.load(wan_bundle, backend="onnxruntime", precision="fp32") as pipeline:
        made = remake(first, pipeline, tmp_path / "again.npy", Observer())
    assert made.sha256 == first.facts["sha256"]
