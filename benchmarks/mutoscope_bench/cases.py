"""What can be benchmarked: the cases, by name, and the models with random weights that some of them run.

Knows names and sizes. Knows nothing of how a model is made or measured. Random weights serve: neither time nor memory
depends on their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROMPT, SEED = "a red circle moving right on a black background", 7


@dataclass(frozen=True)
class RandomModel:
    """The sizes of a model; what is not said is as small as it can be."""

    transformer: Mapping[str, int] = field(default_factory=dict)
    vae: Mapping[str, int] = field(default_factory=dict)
    latent_channels: int = 4
    text_width: int = 16
    dtype: str = "float32"  # of the checkpoint
    precisions: tuple[str, ...] = ("fp32", "int8", "bf16-cpu")
    scheduler: str = "UniPCMultistepScheduler"  # a class of Diffusers
    boundary_ratio: float | None = None  # where the second of two experts takes over; None for one expert
    quick: str = "tiny"  # the model that takes its place with --quick
    # Export compares every graph with its network, which takes minutes for a large one. Without: the graphs of a small
    # model, which was compared, and the large denoiser's in place of the small one's.
    compared: bool = True


_WIDTH = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "freq_dim": 256}
_VAE = {"base_dim": 96, "num_res_blocks": 2}
# Export gives two experts with UniPC their authors' shift, and Diffusers would run another.
_TWO: dict[str, Any] = {
    "scheduler": "FlowMatchEulerDiscreteScheduler", "boundary_ratio": 0.8, "precisions": ("fp32", "int8"),
}  # fmt: skip
MODELS = {
    "tiny": RandomModel(),
    "wan-1.3b-width": RandomModel(
        transformer={**_WIDTH, "num_layers": 2}, vae=_VAE, latent_channels=16, text_width=4096
    ),
    "wan-1.3b": RandomModel(
        transformer={**_WIDTH, "num_layers": 30}, vae=_VAE, latent_channels=16, text_width=4096, dtype="bfloat16",
        precisions=("int8",), compared=False,
    ),
    "tiny-two-experts": RandomModel(**_TWO),
    "two-experts": RandomModel(transformer={**_WIDTH, "num_layers": 2}, quick="tiny-two-experts", **_TWO),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One piece of work that every implementation does alike.

    `kind` is "clip" (a whole run, prompt to file), "forward" (one call of the denoiser with both guidance branches),
    "decode" (latents to frames), "bulk" (several videos by the machinery of `mutoscope batch`), "server" (a clip
    through `mutoscope serve`) or "experts" (a whole run by two experts, one of them loaded, and both).
    """

    name: str
    kind: str
    purpose: str  # for a person
    model: str | None = None  # of `MODELS`; None for the user's bundle
    request: Mapping[str, Any] = field(default_factory=dict)  # fields of `VideoRequest`
    text_tokens: int | None = None  # L of a forward
    needs_bundle: bool = False  # no built-in model can serve it
    picture: bool = False  # the video begins with one
    left_out: Mapping[str, str] = field(default_factory=dict)  # implementation to why
    ours_alone: bool = False  # no peer has anything like it
    videos: int = 1


class UnmeasurableError(Exception):
    """A case cannot be prepared; the message says why and what to do."""


DEFAULT_CLIP = "default-clip"
CASES = {
    case.name: case
    for case in (
        Case(DEFAULT_CLIP, "clip", "the bundle's default clip, from the prompt to a finished MP4"),
        Case("picture-clip", "clip", "the bundle's default clip from a picture, drawn for it", picture=True),
        Case(
            "wan-1.3b-width", "forward", "one forward pass as wide as Wan 2.1 1.3B: 2 blocks, 1280 tokens, 2 branches",
            "wan-1.3b-width", {"height": 256, "width": 256, "num_frames": 17}, text_tokens=512,
        ),
        Case(
            "wan-1.3b", "forward", "one forward pass of Wan 2.1 1.3B: 30 blocks, 192 tokens (128x128x9), 2 branches",
            "wan-1.3b", {"height": 128, "width": 128, "num_frames": 9}, text_tokens=512,
            left_out={
                "diffusers-compiled": "compiling 30 blocks takes longer than the rest of this case; see wan-1.3b-width",
            },
        ),
        Case(
            "wan-vae", "decode", "the Wan 2.1 VAE at its real width: 5 frames of 256x256 in two chunks",
            "wan-1.3b-width", {"height": 256, "width": 256, "num_frames": 5},
            left_out={"diffusers-compiled": "the decoder compiles again for each kind of chunk, for minutes"},
        ),
        Case(
            # Of mlcommons/inference, text_to_video: 20 steps, guidance 4 (its second network's 3 has no counterpart),
            # seed 42. Its negative prompt and its prompts are passed with --negative-prompt and --prompt.
            "mlperf-text-to-video", "clip", "MLPerf's text-to-video settings, for the bundle of a real model",
            request={
                "height": 720, "width": 1280, "num_frames": 81, "num_inference_steps": 20, "guidance_scale": 4.0,
                "fps": 16, "seed": 42,
            },
            needs_bundle=True,
        ),
        Case(
            "experts", "experts", "a clip by two experts as wide as Wan 2.1 1.3B: one in memory at a time, and both",
            "two-experts",
            {"height": 128, "width": 128, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 1.0},
            left_out={"diffusers-compiled": "keeps both networks loaded as diffusers does, and compiles for minutes"},
        ),
        Case(
            "bulk", "bulk", "eight small videos as `mutoscope batch` makes them, beside a loop of Pipeline.generate",
            request={"height": 64, "width": 64, "num_frames": 9}, ours_alone=True, videos=8,
        ),
        Case(
            "server", "server", "the default clip through `mutoscope serve`, beside the same without a server",
            ours_alone=True,
        ),
    )
}  # fmt: skip
# What a comparison runs when no case is named.
COMPARED = (DEFAULT_CLIP, "wan-1.3b-width", "wan-1.3b", "wan-vae")
# With --quick: other sizes, so that it only shows that everything works.
QUICK_REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"num_frames": 5, "num_inference_steps": 2},
    "forward": {"height": 32, "width": 32, "num_frames": 5},
    "decode": {"height": 32, "width": 32, "num_frames": 5},
    "bulk": {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1},
    "server": {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1},
    "experts": {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2},
}
QUICK_TEXT_TOKENS, QUICK_VIDEOS = 8, 2
