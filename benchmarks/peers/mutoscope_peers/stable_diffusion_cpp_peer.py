"""stable-diffusion.cpp (GGML) through its Python package, with the same weights under the names its loader knows.

Knows its loader and what its one entry for videos gives. Its loader has the sizes of Wan 2.1 1.3B and 14B written in,
and stops the process at any other number of blocks; its text encoder is UMT5-XXL. So it can run the case that has 30
real blocks, without a text encoder, which leaves it with prompt embeddings of the usual shape, all of them zero. What
it gives back are images, never a velocity: times can be compared, errors cannot.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mutoscope_bench.implementation import Implementation, Work, needs_checkpoint
from mutoscope_bench.measuring import Answer, Run

BLOCKS, WIDTH = 30, 1536  # of Wan 2.1 1.3B, as its loader has them
# From Diffusers' names to those of the authors' own files, which the loader reads; in this order.
_TRANSFORMER = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.norm2\.", ".norm3."),  # the norm before cross-attention: the third of the authors, the second of Diffusers
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
)
_VAE = (
    (r"^post_quant_conv\.", "conv2."),
    (r"^quant_conv\.", "conv1."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
    # Blocks of three residual layers and an upsampler, in one list.
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".upsamples.{4 * int(m[1]) + 3}."),
    (r"(\d)\.norm1\.", r"\1.residual.0."),
    (r"(\d)\.conv1\.", r"\1.residual.2."),
    (r"(\d)\.norm2\.", r"\1.residual.3."),
    (r"(\d)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)


class StableDiffusionCpp(Implementation):
    """stable-diffusion.cpp, which runs Wan in GGML on the CPU."""

    name = "stable-diffusion.cpp"
    variants = ("q8_0",)  # eight bits, as our int8; its wider types are slower
    import_statement = "import stable_diffusion_cpp"
    files_of = "checkpoint"

    def unavailable_because(self) -> str | None:
        missing = [name for name in ("stable_diffusion_cpp", "safetensors") if find_spec(name) is None]
        return f"needs {', '.join(missing)}; run: pip install 'mutoscope[bench]'" if missing else None

    def cannot(self, work: Work, precision: str) -> str | None:
        if work.kind == "decode":
            return (
                "decodes inside generate_video alone, after 30 or 40 blocks of a denoiser that this model does not have"
            )
        reason = needs_checkpoint(work)
        if reason is not None:
            return reason
        config = json.loads((Path(work.checkpoint or "") / "transformer/config.json").read_text())
        blocks, width = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]
        if (blocks, width) != (BLOCKS, WIDTH):
            return (
                f"its loader ends the process at any Wan that has not 30 blocks of width {WIDTH} or 40 of 5120; "
                f"this has {blocks} of {width}"
            )
        if work.kind == "clip":
            return (
                "a whole run needs UMT5-XXL, whose sizes its loader has written in; this adapter times forwards alone"
            )
        return None

    def prepare(self, work: Work) -> None:
        """In a process of its own, whose memory is not this one's."""
        if not all(file.exists() for file in _files(work)):
            subprocess.run([sys.executable, "-m", __name__, str(work.checkpoint)], check=True)

    def load(self, work: Work, precision: str) -> Run:
        from stable_diffusion_cpp import StableDiffusion

        transformer, vae = _files(work)
        model = StableDiffusion(
            diffusion_model_path=str(transformer), vae_path=str(vae), n_threads=work.threads,
            wtype=precision, flash_attn=True, verbose=False,
        )  # fmt: skip
        branches = len(work.plan["guidance_weights"])
        request = {
            "prompt": work.plan["prompt"], "seed": 0, "sample_steps": 1,
            "width": work.plan["width"], "height": work.plan["height"], "video_frames": work.plan["num_frames"],
            "cfg_scale": 5.0 if branches == 2 else 1.0,
        }  # fmt: skip

        def run() -> Answer:
            marks: list[float] = []
            model.generate_video(**request, progress_callback=lambda *_: marks.append(time.perf_counter()))
            if len(marks) < 2:
                raise RuntimeError("it did not report its step")
            return {
                "elapsed_s": marks[1] - marks[0],
                "note": f"one step of generate_video, {branches} branches; gives images, so its error is not known",
            }

        return run


def _files(work: Work) -> tuple[Path, Path]:
    folder = Path(work.checkpoint or "").parent
    return folder / "wan-transformer.safetensors", folder / "wan-vae.safetensors"


def _renamed(name: str, rules: tuple[tuple[str, Any], ...]) -> str:
    """A weight's name in GGML. `rules` are regular expressions with what replaces them, applied in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def write_renamed(checkpoint: Path) -> None:
    """The transformer and the VAE beside the checkpoint, in the types they have there."""
    for component, rules, target in (
        ("transformer", _TRANSFORMER, "wan-transformer.safetensors"),
        ("vae", _VAE, "wan-vae.safetensors"),
    ):
        tensors: dict[str, Any] = {}
        for file in sorted((checkpoint / component).glob("*.safetensors")):
            tensors |= {_renamed(name, rules): tensor for name, tensor in _loaded(file).items()}
        _save(tensors, checkpoint.parent / target)


def _loaded(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def _save(tensors: dict[str, Any], target: Path) -> None:
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        save_file(tensors, partial)
        os.replace(partial, target)


if __name__ == "__main__":
    write_renamed(Path(sys.argv[1]))
