"""Distils the built-in model into one that needs 4 steps and no guidance.

    python -m mutoscope_export.demo.distil --work build/distilled

The student begins as the teacher. The teacher's paths from noise to clip, with guidance, are cut into 4 segments of
equal steps; at the start of each the student learns the mean velocity over it, so that one Euler step crosses it.

Knows paths, prompts and noise levels. Knows nothing of pixels: what the clips show is judged elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from torch import Tensor
from transformers import T5Tokenizer

from ..export import export_checkpoint
from ..options import ExportOptions
from .grammar import PHRASINGS, all_scenes, sample_scenes
from .make import CHECKPOINT, FLOW_SHIFT, OVERRIDES
from .renderer import HEIGHT, NUM_FRAMES, WIDTH
from .train_denoiser import TextToLatents
from .training import Training, TrainingSchedule, sha256_of_weights

TEACHER_STEPS = 12
TEACHER_GUIDANCE = 1.5
STUDENT_STEPS = 4
BATCH_SIZE = 48
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": FLOW_SHIFT}
# First order without a corrector is Euler's method; UniPC's noise levels are those of every third teacher step.
STUDENT_SCHEDULER = FLOW | {"solver_order": 1, "disable_corrector": list(range(STUDENT_STEPS))}


@dataclass(frozen=True)
class Paths:
    """Where the teacher's paths were at the segments' ends: latents f16 `[N, STUDENT_STEPS + 1, C, F, h, w]`."""

    latents: np.ndarray[Any, np.dtype[np.float16]]
    prompts: list[str]


def draw_prompts(count: int, seed: tuple[int, int]) -> list[str]:
    """Of scenes that the teacher was trained on; the held-out ones stay unseen for the student too."""
    rng = np.random.default_rng(seed)
    seen = [scene for scene in all_scenes() if not scene.held_out]
    return [
        scene.prompt(0 if rng.random() < 0.7 else int(rng.integers(len(PHRASINGS))))
        for scene in sample_scenes(count, rng, seen)
    ]


def sample_paths(teacher: TextToLatents, tokenizer: T5Tokenizer, latents_shape: Sequence[int], count: int, file: Path,
                 *, device: str, seed: int) -> Paths:  # fmt: skip
    """Runs the teacher with guidance, or goes on where `file` ends. Latents are `[C, F, h, w]`.

    Raises:
        ValueError: `file` is of another teacher or seed, so that prompts would not fit its paths.
    """
    note, made_from = file.with_suffix(".json"), {"seed": seed, "teacher_sha256": sha256_of_weights(teacher)}
    done = [np.load(file)] if file.exists() else []
    if done and json.loads(note.read_text("utf-8")) != made_from:
        raise ValueError(f"{file} is of another teacher or seed: ask for the same again, or remove it to begin anew")
    note.write_text(json.dumps(made_from) + "\n", encoding="utf-8", newline="\n")
    prompts: list[str] = []
    for start in range(0, count, BATCH_SIZE):
        chosen = draw_prompts(BATCH_SIZE, (seed, start))
        prompts += chosen
        if start < sum(map(len, done)):
            continue
        generator = torch.Generator().manual_seed(start)  # the model is judged from seeds of a million on
        noise = torch.randn((len(chosen), *latents_shape), generator=generator).to(device)
        done.append(_paths(teacher, tokenizer, chosen, noise).half().cpu().numpy())
        temporary = file.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(done))
        os.replace(temporary, file)
        print(f"paths: {start + BATCH_SIZE} of {count}", flush=True)
    return Paths(np.concatenate(done)[:count], prompts[:count])


@torch.no_grad()
def _paths(teacher: TextToLatents, tokenizer: T5Tokenizer, prompts: list[str], noise: Tensor) -> Tensor:
    """`[N, STUDENT_STEPS + 1, C, F, h, w]` from noise `[N, C, F, h, w]` to the clean sample."""
    scheduler = UniPCMultistepScheduler(**FLOW)
    scheduler.set_timesteps(TEACHER_STEPS)
    positive, negative = (_tokens(tokenizer, texts, noise.device) for texts in (prompts, [""]))
    latents, ends = noise, [noise]
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = (timestep / 1000).to(noise.device).expand(len(noise))
        guided = teacher(latents, sigma, *positive)
        unguided = teacher(latents, sigma, *(each.expand(len(noise), -1) for each in negative))
        velocity = unguided + TEACHER_GUIDANCE * (guided - unguided)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if (index + 1) % (TEACHER_STEPS // STUDENT_STEPS) == 0:
            ends.append(latents)
    return torch.stack(ends, dim=1)


def _tokens(tokenizer: T5Tokenizer, texts: list[str], device: Any) -> tuple[Tensor, Tensor]:
    found = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    return found.input_ids, found.attention_mask


def distil(
    student: TextToLatents, tokenizer: T5Tokenizer, paths: Paths, folder: Path, *, steps: int, seed: int
) -> None:
    """Trains `student`, which begins as the teacher, or goes on where an earlier run in `folder` stopped."""
    scheduler = UniPCMultistepScheduler(**STUDENT_SCHEDULER)
    scheduler.set_timesteps(STUDENT_STEPS)
    device = next(student.parameters()).device
    sigmas, timesteps = scheduler.sigmas.to(device), scheduler.timesteps.to(device)
    training = Training(student, TrainingSchedule(steps, average_decay=0.99).gentler(4), folder, save_every_s=60)

    def loss_of_step(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        chosen = rng.integers(len(paths.latents), size=BATCH_SIZE)
        segment = torch.from_numpy(rng.permutation(BATCH_SIZE) % STUDENT_STEPS).to(device)
        before, after = (
            torch.from_numpy(paths.latents[chosen, ends].astype(np.float32)).to(device)
            for ends in (segment.cpu().numpy(), segment.cpu().numpy() + 1)
        )
        width = (sigmas[segment + 1] - sigmas[segment]).view(-1, 1, 1, 1, 1)
        tokens = _tokens(tokenizer, [paths.prompts[index] for index in chosen], device)
        velocity = student(before, timesteps[segment] / 1000, *tokens)
        squares = (velocity - (after - before) / width).square().mean(dim=(1, 2, 3, 4))
        by_segment = {f"segment_{index + 1}": squares[segment == index].mean() for index in range(STUDENT_STEPS)}
        return {"loss": squares.mean()} | by_segment

    training.run(loss_of_step)
    training.load_averaged()


def main() -> None:
    """Trains a student that takes few steps, and measures it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for paths, training states and the results")
    parser.add_argument("--teacher", type=Path, default=CHECKPOINT, help="default: the repository's built-in model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--paths", type=int, default=960)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    arguments.work.mkdir(parents=True, exist_ok=True)
    pipeline = WanPipeline.from_pretrained(arguments.teacher, dtype=torch.float32)
    model = TextToLatents(pipeline.tokenizer)
    model.start_from(arguments.teacher)
    model.to(arguments.device).eval()
    vae = pipeline.vae.config
    frames = (NUM_FRAMES - 1) // vae.scale_factor_temporal + 1
    shape = (vae.z_dim, frames, HEIGHT // vae.scale_factor_spatial, WIDTH // vae.scale_factor_spatial)
    paths = sample_paths(
        model, pipeline.tokenizer, shape, arguments.paths, arguments.work / "paths.npy",
        device=arguments.device, seed=arguments.seed + 1,
    )  # fmt: skip
    distil(model, pipeline.tokenizer, paths, arguments.work / "student", steps=arguments.steps, seed=arguments.seed)

    checkpoint = arguments.work / "checkpoint"
    shutil.copytree(arguments.teacher, checkpoint, dirs_exist_ok=True)
    model.cpu().half()
    model.transformer.save_pretrained(checkpoint / "transformer")
    model.text_encoder.save_pretrained(checkpoint / "text_encoder")
    UniPCMultistepScheduler(**STUDENT_SCHEDULER).save_pretrained(checkpoint / "scheduler")
    defaults = OVERRIDES["defaults"] | {"num_inference_steps": STUDENT_STEPS, "guidance_scale": 1.0}
    name = f"{OVERRIDES['name']}, distilled to {STUDENT_STEPS} steps"
    overrides = json.dumps(OVERRIDES | {"name": name, "defaults": defaults}, indent=1) + "\n"
    (checkpoint / "mutoscope.json").write_text(overrides, encoding="utf-8", newline="\n")
    options = ExportOptions(precision=("fp32", "int8"), overwrite=True, compact=True)
    export_checkpoint(checkpoint, arguments.work / "bundle", options)


if __name__ == "__main__":
    main()
