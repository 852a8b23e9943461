"""Makes the built-in model from nothing: renders, trains the VAE, trains the denoiser, saves, exports.

    python -m mutoscope_export.builtin.make --work build/builtin

Every part goes on where an earlier run stopped. The checkpoint and the bundle replace those of the repository.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from ..export import export_checkpoint
from .grammar import DESCRIPTION, prompt_pattern
from .renderer import FPS, HEIGHT, NUM_FRAMES, WIDTH
from .train_denoiser import train_denoiser
from .train_vae import reconstruction_psnr, render_pool, train_vae
from .training import read_record

REPOSITORY = Path(__file__).parents[3]
CHECKPOINT = Path(__file__).parent / "checkpoint"
BUNDLE = REPOSITORY / "runtime/mutoscope/builtin/bundle"
RECORD = REPOSITORY / "benchmarks/results/builtin_training.json"

FLOW_SHIFT = 3.0
OVERRIDES = {
    "defaults": {
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": NUM_FRAMES,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "fps": FPS,
    },
    "demonstration": {"pattern": prompt_pattern(), "description": DESCRIPTION},
    "attribution": "trained by the Mutoscope authors on clips drawn by this package",
}
MODEL_CARD = """---
license: apache-2.0
pipeline_tag: text-to-video
---
The demonstration model of Mutoscope, trained from nothing on drawn clips by `python -m mutoscope_export.builtin.make`.
It understands: {description}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for training states and records")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--denoiser-steps", type=int, default=6000)
    parser.add_argument("--clips", type=int, default=6000, help="clips that the denoiser learns from")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    vae = make_vae(arguments)
    model, tokenizer = train_denoiser(
        vae,
        arguments.work / "denoiser",
        steps=arguments.denoiser_steps,
        clip_count=arguments.clips,
        device=arguments.device,
        seed=arguments.seed,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )
    pipeline = WanPipeline(tokenizer, model.text_encoder, vae, scheduler, model.transformer)
    pipeline.to("cpu", torch.float16).save_pretrained(CHECKPOINT, safe_serialization=True)
    (CHECKPOINT / "mutoscope.json").write_text(json.dumps(OVERRIDES, indent=1) + "\n")
    (CHECKPOINT / "README.md").write_text(MODEL_CARD.format(description=DESCRIPTION))
    export_checkpoint(CHECKPOINT, BUNDLE, precisions=("fp32", "int8"), overwrite=True, compact=True, on_progress=print)
    unseen = render_pool(64, arguments.seed + 2)
    shipped = AutoencoderKLWan.from_pretrained(CHECKPOINT / "vae", torch_dtype=torch.float32)
    write_record(arguments.work, {"vae_reconstruction_psnr_db": round(reconstruction_psnr(shipped, unseen), 2)})


def make_vae(arguments: argparse.Namespace) -> AutoencoderKLWan:
    """The trained VAE, read back when it is finished, so that its latents stay the same for the denoiser."""
    finished = arguments.work / "vae" / "finished"
    if not finished.is_dir():
        vae = train_vae(arguments.work / "vae", steps=arguments.vae_steps, device=arguments.device, seed=arguments.seed)
        vae.save_pretrained(finished)
    return AutoencoderKLWan.from_pretrained(finished).to(arguments.device)


def write_record(work: Path, figures: dict[str, float]) -> None:
    """Loss and time of both trainings, thinned to about a hundred rows each."""
    rows = {name: list(read_record(work / name)) for name in ("vae", "denoiser")}
    thinned = {name: [*all_rows[:: max(1, len(all_rows) // 100)], all_rows[-1]] for name, all_rows in rows.items()}
    RECORD.write_text(json.dumps(figures | thinned, indent=1) + "\n")


if __name__ == "__main__":
    main()
