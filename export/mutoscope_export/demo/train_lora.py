"""Trains a LoRA of the built-in model: a colour that the model does not know.

    python -m mutoscope_export.demo.train_lora --work build/lime --output build/lime/lime.safetensors

The text encoder stays as it is. It spells a word that it does not know letter by letter, and the LoRA learns what
these letters mean, for the transformer alone. PEFT holds the LoRA, and Diffusers writes its file.

Knows prompts, latents and noise levels. Knows nothing of pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Tokenizer

from .encoding import Clips, encode_clips
from .grammar import LEARNED_COLOURS
from .make import CHECKPOINT, REPOSITORY
from .train_denoiser import BATCH_SIZE, TextToLatents, add_noise, draw, losses
from .training import TrainingSchedule

LORA = REPOSITORY / "examples/lime.safetensors"  # what this trained

RANK = 8
LAYERS = r"(blocks\..*\.(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2)|condition_embedder\.text_embedder\.linear_[12])"
RATE = 0.004  # of AdamW
KNOWN_SHARE = 0.33  # of a batch: clips in the colours that the model knows, so that these stay
REPORT_EVERY = 20


def train_lora(
    model: TextToLatents,
    tokenizer: T5Tokenizer,
    learned: Clips,
    known: Clips,
    *,
    steps: int,
    seed: int,
    start_from: Path | None = None,
) -> dict[str, Tensor]:
    """Trains a LoRA of the model's transformer on clips of what it learns, beside some of what the model knows.

    Args:
        model: its weights stay as they are.
        tokenizer: of the prompts.
        learned: clips of what the LoRA brings.
        known: clips of what the model knows.
        steps: of training.
        seed: decides everything.
        start_from: a file that this wrote, to train it further at half the learning rate.

    Returns:
        Factors by the names that PEFT gives them, float16, `[rank, in]` and `[out, rank]`.
    """
    # of the development extra alone
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    torch.manual_seed(seed)
    model.requires_grad_(False)
    model.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    rate, part = RATE, 0
    if start_from is not None:
        rate, part = RATE / 2, 1
        trained = {name.removeprefix("transformer."): value for name, value in load_file(start_from).items()}
        set_peft_model_state_dict(model.transformer, trained)
    factors = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, schedule = torch.optim.AdamW(factors, lr=rate, weight_decay=0.0), TrainingSchedule(steps)
    device, count = factors[0].device, round(KNOWN_SHARE * BATCH_SIZE)
    from_text = torch.zeros(BATCH_SIZE, dtype=torch.bool, device=device)
    sums = 0.0
    for step in range(steps):
        rng = np.random.default_rng((seed, step, part))
        latents, captions = draw(((known, count), (learned, BATCH_SIZE - count)), rng)
        text = tokenizer(captions, padding=True, return_tensors="pt").to(device)
        noised = add_noise(torch.from_numpy(latents).to(device), from_text, rng)
        velocity = model(noised.noisy, noised.levels, text.input_ids, text.attention_mask)
        loss = losses(velocity, noised, from_text)["loss"]
        optimizer.param_groups[0]["lr"] = rate * schedule.factor(step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums += float(loss.detach())
        if (step + 1) % REPORT_EVERY == 0:
            print(f"step {step + 1} of {steps}: loss {sums / REPORT_EVERY:.4f}", flush=True)
            sums = 0.0
    return {name: value.half().cpu() for name, value in get_peft_model_state_dict(model.transformer).items()}


def main() -> None:
    """Trains the LoRA and writes its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the encoded clips")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the repository's built-in model")
    parser.add_argument(
        "--output", type=Path, required=True, help="the file to write, such as build/lime/lime.safetensors"
    )
    parser.add_argument("--start-from", type=Path, help="a file that this wrote: train it further")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=576, help="of the new colour, and as many of the others")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the CPU; PyTorch's choice when not given")
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    chosen = {"device": arguments.device, "seed": arguments.seed}
    vae = AutoencoderKLWan.from_pretrained(arguments.checkpoint / "vae", torch_dtype=torch.float32)
    vae.to(arguments.device).eval()
    learned = encode_clips(vae, arguments.clips, arguments.work / "learned.npy", colours=LEARNED_COLOURS, **chosen)
    known = encode_clips(vae, arguments.clips, arguments.work / "known.npy", **chosen)
    tokenizer = T5Tokenizer.from_pretrained(arguments.checkpoint / "tokenizer")
    model = TextToLatents(tokenizer)
    model.start_from(arguments.checkpoint)
    factors = train_lora(
        model.to(arguments.device),
        tokenizer,
        learned,
        known,
        steps=arguments.steps,
        seed=arguments.seed,
        start_from=arguments.start_from,
    )
    WanPipeline.save_lora_weights(arguments.output.parent, factors, weight_name=arguments.output.name)


if __name__ == "__main__":
    main()
