"""How far clips change if a block's self-attention sees fewer tokens: which blocks and steps can take it.

    python -m benchmarks.attention_patterns --output benchmarks/results/attention_patterns.json

The built-in model in Diffusers, in float32. First each block at each step is restricted alone, and the change of the
network's output is measured. Then whole clips are made with every pair of block and step restricted whose change was
below a bound, and compared with the clips of the whole attention. The clips of the network in bfloat16 are the
yardstick: a change that is no larger than theirs loses nothing that users of engines have.

Patterns are the same for every clip, because only these stay one fused attention in an engine. Knows the network's
attention and its grid of tokens. Knows nothing of engines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.transformers import transformer_wan
from mutoscope_bench.difference import psnr_db
from mutoscope_bench.machine_facts import describe
from mutoscope_export.demo.text import MAX_SEQUENCE_LENGTH
from torch import Tensor

from .prompt_following import FIRST_UNSEEN_SEED, Frames, choose_scenes
from .reporting import BUILTIN_CHECKPOINT

Grid = tuple[int, int, int]  # of tokens: frames, rows, columns
Pair = tuple[int, int]  # a step and a block
BOUNDS = (0.01, 0.02, 0.03, 0.05)  # of the relative change (L2) of the network's output, one pair restricted


@dataclass(frozen=True)
class Pattern:
    """Which keys a query sees: those at most so many frames away, and at most so many rows and columns."""

    frames: int | None = None
    places: int | None = None

    def mask(self, grid: Grid) -> Tensor:
        """Bool `[queries, keys]`, with the tokens of a grid in the order of frames, rows and columns."""
        positions = torch.cartesian_prod(*map(torch.arange, grid))
        apart = (positions[:, None] - positions[None]).abs()
        limits = (self.frames, self.places, self.places)
        return (apart <= torch.tensor([max(grid) if limit is None else limit for limit in limits])).all(dim=2)


PATTERNS = {
    "2 frames": Pattern(frames=2),
    "1 frame": Pattern(frames=1),
    "own frame": Pattern(frames=0),
    "1 place": Pattern(places=1),
    "1 frame, 1 place": Pattern(frames=1, places=1),
}


class Restricted:
    """A transformer whose self-attention follows a pattern in chosen blocks at chosen steps.

    Attributes:
        step: that runs now; whoever calls the transformer sets it.
    """

    def __init__(self, transformer: Any, grid: Grid) -> None:
        self.step = 0
        self.grid = grid
        self._block: int | None = None
        for index, block in enumerate(transformer.blocks):
            block.attn1.register_forward_pre_hook(lambda *_, index=index: self._enter(index))
            block.attn2.register_forward_pre_hook(lambda *_: self._enter(None))

    def _enter(self, block: int | None) -> None:
        self._block = block

    @contextmanager
    def to(self, pattern: Pattern, pairs: frozenset[Pair]) -> Iterator[None]:
        """While this lasts, the pattern holds for these pairs."""
        whole, mask = transformer_wan.dispatch_attention_fn, pattern.mask(self.grid)

        def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            if (self.step, self._block) in pairs:
                options["attn_mask"] = mask
            return whole(query, key, value, **options)

        transformer_wan.dispatch_attention_fn = attend
        try:
            yield
        finally:
            transformer_wan.dispatch_attention_fn = whole


class Model:
    """The checkpoint in Diffusers, at the defaults of its `mutoscope.json`."""

    def __init__(self, checkpoint: Path) -> None:
        diffusers.utils.logging.set_verbosity_error()
        self.pipeline = diffusers.WanPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.request = json.loads((checkpoint / "mutoscope.json").read_text("utf-8"))["defaults"]
        del self.request["fps"]
        self.request["max_sequence_length"] = MAX_SEQUENCE_LENGTH
        vae, (_, *patch) = self.pipeline.vae.config, self.pipeline.transformer.config.patch_size
        rows, columns = (self.request[side] // vae.scale_factor_spatial for side in ("height", "width"))
        frames = (self.request["num_frames"] - 1) // vae.scale_factor_temporal + 1
        self.restricted = Restricted(self.pipeline.transformer, (frames, rows // patch[0], columns // patch[1]))

    @property
    def steps(self) -> int:
        """Of denoising."""
        return int(self.request["num_inference_steps"])

    @property
    def blocks(self) -> int:
        """Of the transformer."""
        return len(self.pipeline.transformer.blocks)

    def make(self, prompt: str, seed: int) -> Frames:
        """The frames uint8 `[T, H, W, 3]` of one prompt."""

        def note(_: Any, step: int, __: Any, kept: dict[str, Any]) -> dict[str, Any]:
            self.restricted.step = step + 1
            return kept

        self.restricted.step = 0
        generator = torch.Generator("cpu").manual_seed(seed)
        made = self.pipeline(prompt, generator=generator, output_type="np", callback_on_step_end=note, **self.request)
        return np.rint(255 * made.frames[0]).astype(np.uint8)  # type: ignore[no-any-return]

    def calls(self, prompt: str, seed: int) -> list[dict[str, Any]]:
        """What the network was given for the prompt at each step."""
        given: list[dict[str, Any]] = []
        hook = self.pipeline.transformer.register_forward_pre_hook(
            lambda _, __, named: given.append({name: deepcopy(value) for name, value in named.items()}),
            with_kwargs=True,
        )
        self.make(prompt, seed)
        hook.remove()
        return given[:: len(given) // self.steps]

    @torch.no_grad()
    def velocity(self, call: dict[str, Any]) -> Tensor:
        """What the network says to one call."""
        said: Tensor = self.pipeline.transformer(**call | {"return_dict": False})[0]
        return said


def changes(model: Model, count: int) -> dict[str, list[list[float]]]:
    """By pattern, step and block: the relative change (L2) of the network's output, the mean of some prompts."""
    found = {name: np.zeros((model.steps, model.blocks)) for name in PATTERNS}
    for index, scene in enumerate(choose_scenes(count, seed=1)):
        for step, call in enumerate(model.calls(scene.prompt(), FIRST_UNSEEN_SEED - 1 - index)):
            model.restricted.step = step
            whole = model.velocity(call)
            for name, pattern in PATTERNS.items():
                for block in range(model.blocks):
                    with model.restricted.to(pattern, frozenset({(step, block)})):
                        change = (model.velocity(call) - whole).norm() / whole.norm()
                    found[name][step, block] += float(change) / count
    return {name: np.round(values, 5).tolist() for name, values in found.items()}


def likeness(model: Model, scenes: list[Any], expected: list[Frames]) -> dict[str, float]:
    """PSNR in dB of clips against those of the whole attention."""
    values = []
    for index, (scene, whole) in enumerate(zip(scenes, expected, strict=True)):
        values.append(min(99.0, psnr_db(model.make(scene.prompt(), FIRST_UNSEEN_SEED + index), whole)))
    return {"psnr_db_mean": round(float(np.mean(values)), 2), "psnr_db_worst": round(min(values), 2)}


def measure(model: Model, change: dict[str, list[list[float]]], count: int) -> list[dict[str, Any]]:
    """One row a pattern and bound: how much work is saved, and how far the clips are from those of the whole."""
    scenes = choose_scenes(count)
    expected = [model.make(scene.prompt(), FIRST_UNSEEN_SEED + index) for index, scene in enumerate(scenes)]
    rows = []
    for name, pattern in PATTERNS.items():
        work = float(pattern.mask(model.restricted.grid).float().mean())
        for bound in BOUNDS:
            below = np.argwhere(np.asarray(change[name]) <= bound)
            pairs = frozenset((int(step), int(block)) for step, block in below)
            if not pairs:
                continue
            with model.restricted.to(pattern, pairs):
                found = likeness(model, scenes, expected)
            share = len(pairs) / (model.steps * model.blocks)
            saved = round(share * (1 - work), 4)
            row = {"pattern": name, "work": round(work, 4), "bound": bound, "pairs": round(share, 4), "saved": saved}
            rows.append(row | found)
    model.pipeline.transformer.to(torch.bfloat16)
    rows.append({"pattern": "bfloat16, whole attention", "work": 1.0, "saved": 0.0} | likeness(model, scenes, expected))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BUILTIN_CHECKPOINT, help="default: the built-in model's")
    parser.add_argument("--count", type=int, default=16, help="of prompts whose clips are compared")
    parser.add_argument("--change-count", type=int, default=4, help="of prompts that each pair alone is measured on")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = Model(arguments.checkpoint)
    change = changes(model, arguments.change_count)
    result = {
        "machine": describe(),
        "tokens": model.restricted.grid,
        "rows": measure(model, change, arguments.count),
        "change": change,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    for row in result["rows"]:
        print(row)


if __name__ == "__main__":
    main()
