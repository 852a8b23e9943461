"""Makes the built-in model from nothing: renders, trains the VAE, trains the denoiser, saves, exports.

    python -m mutoscope_export.demo.make --work build/builtin

Every part goes on where an earlier run stopped. The checkpoint and the bundle replace those of the
repository where no others are named.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from transformers import T5Tokenizer

from ..export import export_checkpoint
from ..options import ExportOptions
from .grammar import DESCRIPTION, calibration_prompts, prompt_pattern
from .renderer import FPS, HEIGHT, NUM_FRAMES, WIDTH
from .train_denoiser import TextToLatents, train_denoiser, trained_so_far
from .train_vae import reconstruction_psnr, render_pool, train_vae
from .training import RECORD as TRAINING_RECORD
from .training import read_record

REPOSITORY = Path(__file__).parents[3]
CHECKPOINT = Path(__file__).parent / "checkpoint"
BUNDLE = REPOSITORY / "runtime/mutoscope/builtin/bundle"
RECORD = REPOSITORY / "benchmarks/results/builtin_training.json"

BUNDLE_OPTIONS = ExportOptions(
    precision=("fp32", "int8", "bf16"), overwrite=True, compact=True, lora_inputs=True, video_input=True
)
FLOW_SHIFT = 3.0
OVERRIDES: dict[str, Any] = {
    "name": "Mutoscope's demonstration model",
    "defaults": {
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": NUM_FRAMES,
        "num_inference_steps": 20,
        "guidance_scale": 1.5,
        "fps": FPS,
    },
    "demonstration": {"pattern": prompt_pattern(), "description": DESCRIPTION},
    "attribution": "trained by the Mutoscope authors on clips drawn by this package",
    "calibration_prompts": calibration_prompts(),
}
MODEL_CARD = """---
license: apache-2.0
pipeline_tag: text-to-video
---
The demonstration model of Mutoscope, trained from nothing on drawn clips by `python -m mutoscope_export.demo.make`.
It understands: {description}.
"""


def main() -> None:
    """Trains the demonstration model, exports it, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for training states and records")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-steps", type=int, default=2400, help="of the VAE on short clips, from nothing")
    parser.add_argument("--whole-clip-steps", type=int, default=1500, help="of the VAE on whole clips, after that")
    parser.add_argument("--denoiser-steps", type=int, default=2300)
    parser.add_argument(
        "--clips", type=int, default=5000, help="from text that the denoiser learns from, and as many from pictures"
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the repository's")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="default: the repository's")
    parser.add_argument("--record", type=Path, default=RECORD, help="of loss and time; default: the repository's")
    parser.add_argument(
        "--start-from", type=Path, help="a checkpoint of this model, which is trained further: its VAE on whole clips"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the CPU; PyTorch's choice when not given")
    parser.add_argument(
        "--snapshot",
        type=Path,
        help="train nothing: write the checkpoint of a denoiser that is being trained in --work",
    )
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    vae = make_vae(arguments)
    if arguments.snapshot:
        save_checkpoint(arguments.snapshot, *trained_so_far(arguments.work / "denoiser"), vae)
        return
    model, tokenizer = train_denoiser(
        vae,
        arguments.work / "denoiser",
        steps=arguments.denoiser_steps,
        clip_count=arguments.clips,
        device=arguments.device,
        seed=arguments.seed,
        start_from=arguments.start_from,
    )
    save_checkpoint(arguments.checkpoint, model, tokenizer, vae)
    export_checkpoint(
        arguments.checkpoint,
        arguments.bundle,
        BUNDLE_OPTIONS,
        on_progress=_say,
    )
    unseen = render_pool(64, arguments.seed + 2)
    shipped = AutoencoderKLWan.from_pretrained(arguments.checkpoint / "vae", torch_dtype=torch.float32)
    figures = {"vae_reconstruction_psnr_db": round(reconstruction_psnr(shipped, unseen), 2)}
    write_record(arguments.record, arguments.work, figures)


def save_checkpoint(folder: Path, model: TextToLatents, tokenizer: T5Tokenizer, vae: AutoencoderKLWan) -> None:
    """Writes the published layout of Wan 2.2 TI2V: one folder, from text as `WanPipeline`, from a picture as
    `WanImageToVideoPipeline`."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )
    pipeline = WanPipeline(tokenizer, model.text_encoder, vae, scheduler, model.transformer, expand_timesteps=True)
    pipeline.to("cpu", torch.float16).save_pretrained(folder, safe_serialization=True)
    _forget_paths(folder)
    card = MODEL_CARD.format(description=DESCRIPTION)
    for name, text in (("mutoscope.json", json.dumps(OVERRIDES, indent=1) + "\n"), ("README.md", card)):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _forget_paths(checkpoint: Path) -> None:
    """Diffusers notes in each configuration where it was read from, a path of the machine that trained."""
    for file in checkpoint.rglob("config.json"):
        config = json.loads(file.read_text("utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def _say(stage: str) -> None:
    print(stage, flush=True)


def make_vae(arguments: argparse.Namespace) -> AutoencoderKLWan:
    """The trained VAE, read back when it is finished, so that its latents stay the same for the denoiser."""
    finished = arguments.work / "vae_whole_clips" / "finished"
    training = {"device": arguments.device, "seed": arguments.seed}
    if not finished.is_dir():
        if arguments.start_from is not None:
            vae = AutoencoderKLWan.from_pretrained(arguments.start_from / "vae", torch_dtype=torch.float32)
        else:
            vae = train_vae(arguments.work / "vae", steps=arguments.vae_steps, **training)
        if arguments.whole_clip_steps:
            vae = train_vae(finished.parent, steps=arguments.whole_clip_steps, start_from=vae, **training)
        temporary = finished.with_name("finished.tmp")
        vae.save_pretrained(temporary)
        os.replace(temporary, finished)
    return AutoencoderKLWan.from_pretrained(finished).to(arguments.device)


def write_record(file: Path, work: Path, figures: dict[str, float]) -> None:
    """Loss and time of every training in `work`, thinned to about a hundred rows each; evaluations stay."""
    trained = sorted(record.parent.name for record in work.glob(f"*/{TRAINING_RECORD}"))
    thinned = {name: thin(list(read_record(work / name))) for name in trained}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures | thinned, indent=1) + "\n", encoding="utf-8", newline="\n")


def thin(rows: list[dict[str, Any]], count: int = 100) -> list[dict[str, Any]]:
    """About `count` rows of a record: evenly spaced ones, the last, and every one with a PSNR."""
    every = max(1, len(rows) // count)
    last = len(rows) - 1
    return [row for index, row in enumerate(rows) if index % every == 0 or index == last or "psnr_db" in row]


if __name__ == "__main__":
    main()
