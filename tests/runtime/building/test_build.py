"""Engines built for real, by TensorRT-RTX and without a GPU, from a bundle whose graphs have a few nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutoscope import cli
from mutoscope.building.build import BuildOptions, build_engine, plan_engines
from mutoscope.building.engine_shapes import LargestVideo, profile_of, smallest_in_fp8
from mutoscope.bundle import bundle as b
from mutoscope.bundle import manifest as m
from mutoscope.errors import BundleError, EngineError, EngineMissingError, RequestError, TargetError
from mutoscope.values.parameters import HEIGHT_WIDTH_FRAMES
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import EngineIdentity, ShapeRange, content_of
from mutoscope_engines.symbols import sized
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.library import LIBRARIES

from tests.bundles import Q, lora_form
from tests.runtime.building.networks import FUSED, HEADS, NOT_FUSED, network

needs_library = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

Make = Callable[..., b.Bundle]
LARGEST = "128x128x1"  # pixels of the patches below: 16384 tokens, whose scores take 1 GB
ROLES = ("text_encoder", "denoiser", "vae_features_first", "vae_features_next", "vae_decoder_first", "vae_decoder_next")
ENCODERS = ("vae_encoder_first", "vae_encoder_next")


@pytest.fixture
def engine_bundle(make_bundle: Make) -> Make:
    """Writes a bundle of small networks in bf16 and fp16, whose denoiser attends over all tokens."""

    def make(attention: str = FUSED) -> b.Bundle:
        root = make_bundle().root
        graphs = tuple(network(root, role, precision, attention) for role in ROLES for precision in ("bf16", "fp16"))
        geometry = {"patch_size": (1, 1, 1), "vae_scale_factor_spatial": 1, "max_patches": 256}
        return make_bundle(graphs=graphs, geometry=geometry)

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("MUTOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MUTOSCOPE_CACHE_GB", raising=False)
    return EngineCache()


def targets_of(bundle: b.Bundle, **options: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    jobs = plan_engines(bundle, BuildOptions(**options))
    return [(job.graph.role, job.graph.precision, job.identity.compute_capabilities) for job in jobs]


@needs_library
def test_targets_share_an_engine_but_for_those_without_bfloat16(engine_bundle: Make):
    built = targets_of(engine_bundle(), target=("rtx40", "rtx20", "rtx50", "sm89"))
    for role in ROLES:
        assert (role, "fp16", (75,)) in built
        assert (role, "bf16", (89, 120)) in built
    assert len(built) == 12


def test_the_command_takes_only_precisions_of_gpus_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "--target", "rtx40", "--precision", "fp32"]) == 2
    assert "there is no precision 'fp32'. There are: bf16, fp16, int8-static, fp8, nvfp4" in capsys.readouterr().err


@needs_library
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "rtx60"}, TargetError, "did you mean rtx50[?] There are: rtx20, rtx30"),
        (
            {"target": ("rtx20", "rtx40"), "precision": "bf16"},
            TargetError,
            "rtx20 does not support bf16; it supports: fp16",
        ),
        (
            {"target": "rtx30", "precision": "fp8"},
            TargetError,
            "rtx30 does not support fp8; it supports: bf16, fp16, int8-static",
        ),
        (
            {"target": ("rtx40", "rtx50"), "precision": "nvfp4"},
            TargetError,
            "rtx40 does not support nvfp4; it supports: bf16, fp16, int8-static, fp8",
        ),
        ({"target": ("rtx40", "rtx50"), "backend": "tensorrt"}, TargetError, "only for the GPU of this machine"),
        ({"target": "rtx40", "precision": "fp8"}, BundleError, "it has: bf16, fp16"),
        ({"target": "rtx40,rtx50"}, RequestError, r"such as target=\('rtx40', 'rtx50'\); got 'rtx40,rtx50'"),
        ({"target": "rtx40", "shapes": "64x96x9"}, RequestError, r"such as shapes=\(64, 96, 9\); got '64x96x9'"),
        ({"target": "rtx40", "shapes": (480, 832)}, RequestError, r"shapes must be \(height, width, num_frames\)"),
        (
            {"target": "rtx40", "shapes": (300, 32, 1)},
            RequestError,
            "the height of shapes must be a whole number from 1 to 256",
        ),
        ({"target": "rtx40", "shapes": (32, 32, 4)}, RequestError, "nearest: 1, 5"),
        ({"target": "rtx40", "tile": (2, 9)}, RequestError, r"tile=\(2, 9\) must be multiples of 1 and at least 3"),
        (
            {"target": "rtx40", "branches_per_call": 3},
            RequestError,
            "branches_per_call must be a whole number from 1 to 2",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(
    engine_bundle: Make, options: dict, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        plan_engines(engine_bundle(), BuildOptions(**options))


def test_the_profile_spans_from_the_least_to_the_largest_video(engine_bundle: Make):
    bundle = engine_bundle()
    video = LargestVideo.choose((32, 48, 9), 1, bundle.manifest)
    denoiser = profile_of(bundle.manifest.graphs_of("denoiser", "bf16")[0], video, bundle.manifest)
    assert {name: (each.min, each.max) for name, each in denoiser.items()} == {
        "latents": ((4, 1, 1, 1), (4, 3, 32, 48)),
        "state": ((1, 4, 1, 1, 1), (8, 4, 3, 32, 48)),
        "timestep": ((1,), (1,)),
        "prompt_embeds": ((1, 1, 6), (1, 24, 6)),
        "guidance_weights": ((1,), (1,)),
        "solver_a": ((1, 1), (8, 8)),
        "solver_b": ((1,), (8,)),
    }
    assert all(each.opt == each.max for each in denoiser.values())
    decoder = profile_of(bundle.manifest.graphs_of("vae_decoder_next", "bf16")[0], video, bundle.manifest)
    assert decoder["features"].max == (1, 4, 32, 48)


def test_an_engine_takes_loras_of_every_rank_and_is_tuned_for_a_usual_one(engine_bundle: Make):
    manifest = engine_bundle().manifest
    (graph,) = lora_form(precision="bf16").graphs
    for exact_size in (False, True):
        video = LargestVideo.choose((16, 24, 9), 1, manifest)
        profile = profile_of(graph, video, manifest, exact_size=exact_size)
        assert profile[f"{Q}.lora_a"] == ShapeRange((6, 1), opt=(6, 64), max=(6, 512))


def test_both_forms_of_a_denoiser_are_built(engine_bundle: Make):
    plain = engine_bundle()
    (graph,) = plain.manifest.graphs_of("denoiser", "bf16")
    other = msgspec.structs.replace(lora_form(precision="bf16").graphs[0], file=graph.file)
    form = msgspec.structs.replace(lora_form(), graphs=(other,))
    both = replace(plain, manifest=msgspec.structs.replace(plain.manifest, lora_forms=(form,)))
    jobs, more = (plan_engines(bundle, BuildOptions(target="rtx40")) for bundle in (plain, both))
    assert [job.graph.name for job in more if job not in jobs] == ["denoiser-lora"]
    assert len(more) == len(jobs) + 1


def test_in_tiles_the_decoder_alone_is_built_for_one_window(engine_bundle: Make):
    manifest = engine_bundle().manifest
    video = LargestVideo.choose((32, 48, 9), 1, manifest, (20, 40))
    sizes = {role: video.symbols(manifest, role) for role in ROLES}
    assert {role: (sizes[role]["h"], sizes[role]["w"]) for role in ROLES} == {
        **dict.fromkeys(ROLES, (32, 48)),
        # Two rows of two tiles, each of which loses one pixel at its inner sides.
        **dict.fromkeys(("vae_decoder_first", "vae_decoder_next"), (17, 25)),
    }


def test_an_engine_of_exact_size_takes_the_frames_of_one_video_and_still_either_number_of_branches(engine_bundle: Make):
    manifest = engine_bundle().manifest
    video = LargestVideo.choose((32, 48, 9), 2, manifest)
    shape = ("B", "L", "F", "8*h", "w", "K")
    graph = msgspec.structs.replace(
        manifest.graphs_of("denoiser", "bf16")[0], inputs=(m.GraphTensor(name="x", dtype="float32", shape=shape),)
    )
    exact = profile_of(graph, video, manifest, exact_size=True)["x"]
    assert exact.max == sized(shape, video.symbols(manifest, "denoiser"))
    assert (exact.min[1:5], exact.min[0], exact.min[5]) == (exact.max[1:5], 1, 1)
    assert profile_of(graph, video, manifest)["x"].min != exact.min


def test_an_fp8_engine_takes_no_video_too_short_for_fused_attention():
    assert smallest_in_fp8({"h": 60, "w": 104}, (1, 2, 2)) == {"h": 12, "w": 12}  # 6 x 6 patches are 32 tokens or more
    assert smallest_in_fp8({"h": 8, "w": 104}, (1, 2, 2)) == {"h": 8, "w": 12}


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_attention_in_fp8_alone_asks_for_a_larger_smallest_video(engine_bundle: Make, precision: str):
    manifest = engine_bundle().manifest
    video = LargestVideo.choose((96, 96, 9), 1, manifest)
    (graph, *_) = manifest.graphs_of("denoiser", "bf16")
    inputs = (m.GraphTensor(name="x", dtype="float32", shape=("h", "w")),)
    smallest = profile_of(msgspec.structs.replace(graph, precision=precision, inputs=inputs), video, manifest)["x"].min
    fused = smallest_in_fp8(video.symbols(manifest, "denoiser"), manifest.geometry.patch_size)
    assert (smallest == (fused["h"], fused["w"])) == (precision != "bf16")


def test_the_size_of_an_axis_may_be_a_product():
    assert sized((1, "C", "8*h", "F*h*w"), {"C": 7, "F": 2, "h": 3, "w": 5}) == (1, 7, 24, 30)


@needs_library
def test_every_graph_is_built_once_and_found_by_content(
    engine_bundle: Make, cache: EngineCache, capsys: pytest.CaptureFixture[str]
):
    bundle = engine_bundle()
    command = ["build", str(bundle.root), "--target", "rtx40,rtx50", "--shapes", "32x48x9", "--json", "--report"]
    assert cli.main(command) == 0
    first = capsys.readouterr()
    table, _, json_line = first.out.strip().rpartition("\n")
    engines = json.loads(json_line)["engines"]
    assert [engine["graph"] for engine in engines] == list(ROLES)
    for engine in engines:
        assert set(engine) == {
            "graph", "target", "precision", "activation_bytes", "weight_bytes", "engine_bytes", "build_s",
            "host_peak_bytes",
        }  # fmt: skip
        assert (engine["target"], engine["precision"]) == ("rtx40,rtx50", "bf16")
        assert engine["host_peak_bytes"] > 50e6  # the library alone
    assert table.splitlines()[0].split()[:3] == ["graph", "target", "precision"]
    assert first.err.count(" built in ") == len(ROLES)

    assert cli.main(command) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("is already in the cache") == len(ROLES)

    assert cli.main(["doctor", str(bundle.root), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["engines"]
    assert (shown["folder"], shown["engines"], shown["limit_bytes"]) == (str(cache.folder), len(ROLES), 64 * 10**9)
    assert shown["size_bytes"] == sum(path.stat().st_size for path in cache.folder.iterdir())

    graph = bundle.root / "denoiser-bf16" / "model.onnx"
    denoiser, *_ = bundle.manifest.graphs_of("denoiser", "bf16")
    sizes = {"B": 1, "L": 7, "F": 3, "h": 32, "w": 48, "K": 4}
    shapes = {tensor.name: ShapeRange.exactly(sized(tensor.shape, sizes)) for tensor in denoiser.inputs}

    def wanted() -> EngineIdentity:
        return LIBRARIES["tensorrt-rtx"].identity(content_of(graph), "bf16", [find_target("rtx50")], shapes)

    engine = cache.load(cache.catalogue().find(wanted()))
    assert len(engine.data) == engine.record.report.engine_bytes == engines[1]["engine_bytes"]
    network(bundle.root, "denoiser", "bf16", NOT_FUSED)
    with pytest.raises(EngineMissingError, match=r"model\.onnx changed"):
        cache.catalogue().find(wanted())


@needs_library
def test_an_engine_that_writes_its_scores_to_memory_is_not_kept(
    engine_bundle: Make, cache: EngineCache, capsys: pytest.CaptureFixture[str]
):
    bundle = engine_bundle(NOT_FUSED)
    command = ["build", str(bundle.root), "--target", "rtx40", "--shapes", LARGEST, "--branches-per-call", "1"]
    assert cli.main(command) == EngineError.exit_code
    said = capsys.readouterr().err
    assert "at most 0.26 GB is expected with fused attention" in said
    assert [record.report.graph for record in cache.catalogue().records] == ["text_encoder"]  # built before it


@needs_library
def test_the_same_attention_fused_is_kept(engine_bundle: Make, cache: EngineCache):
    bundle = engine_bundle()
    job = next(
        job
        for job in plan_engines(
            bundle, BuildOptions(target="rtx40", shapes=HEIGHT_WIDTH_FRAMES.read(LARGEST), branches_per_call=1)
        )
        if job.graph.role == "denoiser"
    )
    report, built = build_engine(bundle, job, BuildOptions(target="rtx40"), cache, lambda: None)
    assert built
    assert report.activation_bytes < 16384**2 * HEADS * 2 / 10  # a tenth of the scores


@needs_library
def test_the_builtin_bundle_builds_for_three_generations_at_once(cache: EngineCache):
    assert cli.main(["build", "--target", "rtx30,rtx40,rtx50", "--quiet"]) == 0
    built = {(record.report.graph, record.identity.compute_capabilities) for record in cache.catalogue().records}
    assert built == {(role, (86, 89, 120)) for role in (*ROLES, "denoiser-lora", *ENCODERS)}


@needs_library
def test_ctrl_c_leaves_the_cache_sound(engine_bundle: Make, cache: EngineCache):
    command = [sys.executable, "-m", "mutoscope", "build", str(engine_bundle().root), "--target", "rtx40"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not list(cache.folder.glob("*.partial")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert b"interrupted" in process.stderr.read()
    assert process.returncode == 130
    assert list(cache.folder.iterdir()) == []
