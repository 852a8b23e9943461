"""What a caller can ask of an export. Every option is declared here and nowhere else.

The command line makes its flags from these fields. Knows no checkpoint, and imports neither torch nor ONNX, so that
`--help` does not wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mutoscope.values.parameters import BYTES, HEIGHT_WIDTH_FRAMES, Form, parameter
from mutoscope_engines.precisions import ON_GPU, PRECISIONS

# A compiler for GPUs takes two to three times the weights in host memory, and 32 GB are common.
DEFAULT_PART_BYTES = 8 * 10**9
_ON_CPU = [name for name in PRECISIONS if name not in ON_GPU]


def _lines(file: str) -> tuple[str, ...]:
    try:
        return tuple(Path(file).read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the prompts in {file} cannot be read: {error}; name a text file with one prompt per line"
        ) from error


PROMPTS = Form(
    "a text file with one prompt per line", "a sequence of prompts", ("a red ring", "a fox"), _lines, "\n".join
)

CLIPS = Form(
    "one or more paths of picture or video files, such as first.png",
    "a tuple of pictures and clips, each a path, the bytes of a file, or an array uint8 [H, W, 3] or [T, H, W, 3]",
    ("first.png",),
    lambda path: path or None,
    str,
    several=True,
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which graphs a bundle has, and how they are stored, divided and calibrated."""

    TITLE: ClassVar[str] = "bundle"

    precision: tuple[str, ...] = parameter(
        f"precisions of the denoiser: {', '.join(_ON_CPU)} for CPUs; {', '.join(ON_GPU)} for GPUs",
        ("fp32",),
        choices=tuple(PRECISIONS),
        unit="NAME",
    )
    overwrite: bool = parameter("replace an existing bundle", False)
    compact: bool = parameter("store weights in half precision where that is exact; same frames", False)
    video_input: bool = parameter(
        "give the bundle the encoder of the VAE, too, so that it changes videos with --video and --strength; for "
        "text-to-video models",
        False,
    )
    part_size: int = parameter(
        "for GPUs, split denoiser and text encoder into parts of at most this size, such as 4GB, or of one block. "
        "Smaller parts need less host memory to build and slightly more GPU memory to run",
        DEFAULT_PART_BYTES,
        unit="SIZE",
        form=BYTES,
    )
    transformer: tuple[str, ...] = parameter(
        "weights of the transformer from elsewhere: a safetensors file in the layout of Diffusers, of the model's "
        "authors or of ComfyUI, or a Diffusers folder; two for a model with two experts, that of the first steps first",
        (),
        unit="FILE",
    )
    vae: str | None = parameter("the VAE from elsewhere: a Diffusers folder", unit="FOLDER")
    text_encoder: str | None = parameter("the text encoder from elsewhere: a folder", unit="FOLDER")
    lora: tuple[str, ...] = parameter(
        "LoRAs to merge into the transformer, in a model with two experts into the first", (), unit="FILE[:STRENGTH]"
    )
    lora_2: tuple[str, ...] = parameter(
        "LoRAs to merge into the second expert, transformer_2", (), unit="FILE[:STRENGTH]"
    )
    lora_inputs: bool = parameter(
        "also write each denoiser in a form whose weights LoRAs change while it runs (generate --lora); not in "
        "int8-static and nvfp4. It shares its weights with the other, so the bundle hardly grows",
        False,
    )
    calibration_prompts: Sequence[str] | None = parameter(
        "for fp8, int8-static and nvfp4: text file of typical prompts, one per line (default: the checkpoint's own, or "
        "8 varied ones)",
        unit="FILE",
        form=PROMPTS,
    )
    calibration_clips: Sequence[Any] | None = parameter(
        "for fp8, int8-static and nvfp4 of a model that takes pictures or clips: typical ones, the first for the first "
        "prompt and so on, over again; of a video, the first frames (default: drawn ones)",
        unit="FILE",
        form=CLIPS,
    )
    calibration_size: tuple[int, int, int] | None = parameter(
        "for fp8, int8-static and nvfp4: height x width x frames of the calibration videos, such as 480x832x81 "
        "(default: the model's default size)",
        unit="HxWxT",
        form=HEIGHT_WIDTH_FRAMES,
    )
    calibration_steps: int | None = parameter(
        "for fp8, int8-static and nvfp4: denoising steps for each calibration video (default: the model's default)",
        unit="N",
    )
