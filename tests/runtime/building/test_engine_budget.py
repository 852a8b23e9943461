"""The gate, with what TensorRT-RTX gave for graphs of the real sizes of Wan: of 2.1 1.3B 7.38 GB unfit, 0.89 GB fit."""

from __future__ import annotations

from contextlib import nullcontext
from types import MappingProxyType

import pytest
from mutoscope.building.engine_budget import check_budget
from mutoscope.bundle.conditionings import ControlConditioning
from mutoscope.bundle.manifest import Geometry, Graph, GraphTensor
from mutoscope.errors import EngineError
from mutoscope_engines.tensorrt.builder import Compiled

GEOMETRY = Geometry(
    latent_channels=16,
    vae_scale_factor_spatial=8,
    vae_scale_factor_temporal=4,
    patch_size=(1, 2, 2),
    max_patches=1024,
    vae_decoder_halo=7,
)
SYMBOLS = MappingProxyType({"B": 1, "L": 512, "F": 21, "h": 60, "w": 104, "K": 4})  # 480x832x81
CACHES = tuple(
    GraphTensor(name=f"next_cache_{scale}", dtype="bfloat16", shape=(2, channels, f"{scale}*h", f"{scale}*w"))
    for scale, channels in ((1, 384), (2, 384), (4, 192), (8, 96))
)

CACHES_2_2 = tuple(
    GraphTensor(name=f"next_cache_{scale}", dtype="bfloat16", shape=(2, channels, f"{scale}*h", f"{scale}*w"))
    for scale, channels in ((1, 1024), (2, 1024), (4, 1024), (8, 512))
)
SYMBOLS_2_2 = MappingProxyType({"F": 31, "h": 44, "w": 80})  # 704x1280x121


def check(
    role: str,
    activation_bytes: float,
    *,
    width: int = 1536,
    heads: int = 12,
    caches: tuple[GraphTensor, ...] = CACHES,
    **symbols: int,
) -> None:
    num_frames = 1 if role.endswith("_first") else 4
    frames = GraphTensor(name="frames", dtype="uint8", shape=(num_frames, "8*h", "8*w", 3))
    ids = GraphTensor(name="input_ids", dtype="int64", shape=("B", "L"))
    graph = Graph(role=role, precision="bf16", file="", inputs=(ids,), outputs=(frames, *caches))
    compiled = Compiled(int(activation_bytes), 0, 0, "", 0.0, 0, width, heads)
    check_budget(graph, {**SYMBOLS, **symbols}, GEOMETRY, compiled, "rtx40")


def test_a_denoiser_with_fused_attention_passes():
    check("denoiser", 0.891e9)
    check("denoiser", 1.915e9, B=2)
    check("denoiser", 2.053e9, h=90, w=160)


@pytest.mark.parametrize("activation_bytes", [1.50e9, 7.38e9, 32760**2 * 12 * 2])  # as before; stock; the scores
def test_a_denoiser_with_anything_larger_in_memory_fails_with_both_numbers(activation_bytes: float):
    with pytest.raises(EngineError, match=rf"needs {activation_bytes / 1e9:.2f} GB .* at most 1\.21 GB"):
        check("denoiser", activation_bytes)


def test_a_denoiser_that_loras_change_may_also_hold_one_and_a_half_of_the_largest_weight():
    loras = tuple(
        GraphTensor(name=name, dtype="float16", shape=shape)
        for name, shape in {
            "q.lora_a": (1536, "R"), "q.lora_b": ("R", 1536), "f.lora_a": (8960, "R"), "f.lora_b": ("R", 1536),
        }.items()
    )  # fmt: skip
    graph = Graph(role="denoiser", precision="bf16", file="", inputs=loras, outputs=())
    states, weight = 12 * 32760 * 1536 * 2, 8960 * 1536 * 2
    for activation_bytes, fits in ((918.3e6, True), (states + 1.5 * weight, True), (states + 1.6 * weight, False)):
        compiled = Compiled(int(activation_bytes), 0, 0, "", 0.0, 0, 1536, 12)
        with nullcontext() if fits else pytest.raises(EngineError, match=r"denoiser-lora .* at most 1\.25 GB"):
            check_budget(graph, SYMBOLS, GEOMETRY, compiled, "rtx40")


def test_a_denoiser_with_control_may_also_hold_what_its_second_row_of_blocks_does():
    """Three blocks in either row, of the width of VACE 1.3B in FP8 for RTX 40, take 1.563 GB."""
    control = ControlConditioning(
        name="video", mask="mask", references="reference_images", scale="conditioning_scale", role="vae_encoder_first",
        following="vae_encoder_next", feeds={"condition": "control"}, scale_input="control_scale", layers=3,
    )  # fmt: skip
    scales = GraphTensor(name="control_scale", dtype="float32", shape=(3,))
    state = 32760 * 1536 * 2
    for inputs, activation_bytes, fits in (
        ((scales,), 1.563e9, True),
        ((), 1.563e9, False),  # a part without such blocks
        ((scales,), 20 * state, False),
        ((scales,), 73 * state, False),
    ):
        graph = Graph(role="denoiser", precision="fp8", file="", inputs=inputs, outputs=())
        compiled = Compiled(int(activation_bytes), 0, 0, "", 0.0, 0, 1536, 12)
        with nullcontext() if fits else pytest.raises(EngineError, match=r"at most 1\.(91|21) GB"):
            check_budget(graph, SYMBOLS, GEOMETRY, compiled, "rtx40", [control])


def test_the_networks_of_wan_2_2_5b_pass_and_nothing_much_larger():
    check("denoiser", 1.617e9, width=3072, heads=24, **SYMBOLS_2_2)
    check("denoiser", 3.226e9, width=3072, heads=24, B=2, **SYMBOLS_2_2)
    check("vae_decoder_next", 5.192e9, caches=CACHES_2_2, **SYMBOLS_2_2)
    check("vae_decoder_next", 1.540e9, caches=CACHES_2_2, h=29, w=36)
    check("vae_decoder_first", 1.537e9, caches=CACHES_2_2, **SYMBOLS_2_2)
    with pytest.raises(EngineError, match=r"at most 2\.01 GB"):
        check("denoiser", 2.1e9, width=3072, heads=24, **SYMBOLS_2_2)
    with pytest.raises(EngineError, match=r"at most 5\.54 GB"):
        check("vae_decoder_next", 6.0e9, caches=CACHES_2_2, **SYMBOLS_2_2)  # 13 maps: all frames of a chunk


def test_a_text_encoder_may_hold_the_scores_of_its_short_text():
    scores = 64 * 512**2 * 4
    check("text_encoder", 3 * scores, width=4096, heads=64)
    with pytest.raises(EngineError):
        check("text_encoder", 10 * scores, width=4096, heads=64)
    with pytest.raises(EngineError):  # whatever the length of another encoder's text
        check("text_encoder", 10 * scores, width=4096, heads=64, S=4096)


def test_a_decoder_may_hold_a_few_of_its_widest_feature_maps():
    check("vae_decoder_next", 1.694e9)
    check("vae_decoder_next", 3.908e9, h=90, w=160)
    check("vae_decoder_first", 0.768e9)
    with pytest.raises(EngineError, match=r"at most 0\.92 GB"):
        check("vae_decoder_first", 1.0e9)  # of one frame


@pytest.mark.parametrize("activation_bytes", [2.00e9, 3.5e9])  # all frames of a chunk at once; stock
def test_a_decoder_that_holds_all_frames_of_a_chunk_fails(activation_bytes: float):
    with pytest.raises(EngineError, match=r"at most 1\.84 GB"):
        check("vae_decoder_next", activation_bytes)


def test_a_small_engine_is_never_refused():
    check("denoiser", 0.2e9, width=64, heads=2, F=1, h=2, w=2)
    check("vae_decoder_first", 0.2e9, h=2, w=2)


def test_an_encoder_may_hold_feature_maps_of_its_frames():
    frames = GraphTensor(name="frames", dtype="float32", shape=(1, "16*h", "16*w", 3))
    graph = Graph(role="vae_encoder_first", precision="bf16", file="", inputs=(frames,), outputs=())
    symbols = {**SYMBOLS, "h": 44, "w": 80}
    check_budget(graph, symbols, GEOMETRY, Compiled(int(0.301e9), 0, 0, "", 0.0, 0, 0, 0), "rtx40")  # Wan 2.2 5B
    with pytest.raises(EngineError, match=r"at most 1\.46 GB"):
        check_budget(graph, symbols, GEOMETRY, Compiled(int(1.5e9), 0, 0, "", 0.0, 0, 0, 0), "rtx40")


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "fits", "unfit"),
    [
        (1, 60, 104, 0.567e9, 0.9e9),
        (1, 90, 160, 1.604e9, 2.7e9),
        (4, 60, 104, 2.000e9, 2.8e9),
        (4, 90, 160, 4.616e9, 7e9),
    ],
)
def test_the_encoder_of_wan_2_1_passes_and_nothing_much_larger(
    num_frames: int, height: int, width: int, fits: float, unfit: float
):
    frames = GraphTensor(name="frames", dtype="float32", shape=(num_frames, "8*h", "8*w", 3))
    role = "vae_encoder_first" if num_frames == 1 else "vae_encoder_next"
    graph = Graph(role=role, precision="bf16", file="", inputs=(frames,), outputs=())
    symbols = {**SYMBOLS, "h": height, "w": width}
    check_budget(graph, symbols, GEOMETRY, Compiled(int(fits), 0, 0, "", 0.0, 0, 0, 0), "rtx40")
    with pytest.raises(EngineError):
        check_budget(graph, symbols, GEOMETRY, Compiled(int(unfit), 0, 0, "", 0.0, 0, 0, 0), "rtx40")
