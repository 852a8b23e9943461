"""Judges whether the built-in model's clips show what their prompts say, by plain image measurement.

    python -m benchmarks.prompt_following --count 240 --output benchmarks/results/prompt_following.json

Knows pixels and the grammar. Knows nothing of the model: `judge` sees frames only, and is tested on rendered truth.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mutoscope
import numpy as np
from mutoscope_export.builtin.grammar import BACKGROUNDS, COLOURS, Scene, all_scenes
from numpy.typing import NDArray

from .machine import describe

Frames = NDArray[np.uint8]
ASPECTS = ("colour", "background", "motion", "shape")
GOALS = {"colour": 0.95, "background": 0.95, "motion": 0.90, "shape": 0.85}
FIRST_UNSEEN_SEED = 1_000_000  # training draws its noise elsewhere


@dataclass(frozen=True)
class Judgement:
    """What the frames show, in the grammar's words; `None` where nothing could be told."""

    colour: str | None
    background: str
    motion: str | None
    shape: str | None


def judge(frames: Frames) -> Judgement:
    """Reads uint8 `[T, H, W, 3]` frames: one shape of one colour on a plain background."""
    pixels = frames.astype(np.float32)
    border = np.concatenate([pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)])
    background = np.median(border, axis=0)
    mask, colour = _foreground(pixels, background)
    visible = mask.sum(axis=(1, 2)) >= 12
    if visible.sum() < len(frames) // 2 or colour is None:
        return Judgement(None, _nearest(background, BACKGROUNDS), None, None)
    mask = mask[visible]
    return Judgement(_nearest(colour, COLOURS), _nearest(background, BACKGROUNDS), _motion(mask), _shape(mask))


def _nearest(colour: NDArray[Any], names: Mapping[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.asarray(names[name]))))


def _foreground(pixels: NDArray[Any], background: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[Any] | None]:
    """Pixels that lie nearer to the foreground's colour than to the background's, and that colour."""
    difference = pixels - background
    clear = np.linalg.norm(difference, axis=-1) > 60
    if clear.sum() < 12:
        return clear, None
    colour = np.median(pixels[clear], axis=0)
    towards = colour - background
    return difference @ towards > 0.5 * towards @ towards, colour


def _motion(mask: NDArray[np.bool_]) -> str:
    area = mask.sum(axis=(1, 2)).astype(np.float64)
    ratio = area[-3:].mean() / area[:3].mean()
    if ratio > 1.6 or ratio < 1 / 1.6:
        return "growing" if ratio > 1 else "shrinking"
    rows, columns = np.arange(mask.shape[1]), np.arange(mask.shape[2])
    y = mask.sum(axis=2) @ rows / area
    x = mask.sum(axis=1) @ columns / area
    across, down = x[-2:].mean() - x[:2].mean(), y[-2:].mean() - y[:2].mean()
    travelled, reach = np.abs(np.diff(y)).sum(), np.ptp(y)
    if reach > 10 and travelled > 1.6 * reach:
        return "bouncing"
    if max(abs(across), abs(down)) < 6:
        return "staying still"
    if abs(across) > abs(down):
        return "moving right" if across > 0 else "moving left"
    return "moving down" if down > 0 else "moving up"


def _shape(mask: NDArray[np.bool_]) -> str:
    """By how much of its bounding box a shape fills, and whether its middle is empty; the larger half of the frames."""
    area = mask.sum(axis=(1, 2))
    fills, middles = [], []
    for frame in mask[area >= np.median(area)]:
        rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
        box = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        middle_row, middle_column = box.shape[0] // 2, box.shape[1] // 2
        fills.append(box.mean())
        middles.append(box[middle_row - 1 : middle_row + 2, middle_column - 1 : middle_column + 2].mean())
    if np.median(middles) < 0.5:
        return "ring"
    fill = np.median(fills)
    return "triangle" if fill < 0.65 else "circle" if fill < 0.89 else "square"


def choose_scenes(count: int, seed: int = 0) -> list[Scene]:
    """A quarter from the combinations that training never saw, the rest from all others."""
    rng = np.random.default_rng(seed)
    scenes = all_scenes()
    held_out = [scene for scene in scenes if scene.held_out]
    seen = [scene for scene in scenes if not scene.held_out]
    quarter = count // 4
    chosen = [held_out[i] for i in rng.choice(len(held_out), quarter, replace=False)]
    return chosen + [seen[i] for i in rng.choice(len(seen), count - quarter, replace=False)]


def measure(pipeline: mutoscope.Pipeline, count: int, **parameters: Any) -> list[dict[str, Any]]:
    """One row a prompt: what was asked, what was seen, which aspects are right."""
    rows = []
    for index, scene in enumerate(choose_scenes(count)):
        video = pipeline.generate(scene.prompt(), seed=FIRST_UNSEEN_SEED + index, **parameters)
        seen = asdict(judge(video.frames))
        right = {aspect: seen[aspect] == getattr(scene, aspect) for aspect in ASPECTS}
        asked = {"prompt": scene.prompt(), "seed": video.plan.seed, "held_out": scene.held_out}
        rows.append(asked | {"seen": seen} | right)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The share of prompts that came out right, by aspect: of all, of the held-out, of the seen."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups["all"].append(row)
        groups["held_out" if row["held_out"] else "seen"].append(row)
    return {
        name: {
            "n": len(group),
            **{aspect: float(np.mean([row[aspect] for row in group]).round(4)) for aspect in ASPECTS},
        }
        for name, group in groups.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the built-in one when not given")
    parser.add_argument("--precision", help="of the denoiser")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with mutoscope.Pipeline.load(arguments.bundle, precision=arguments.precision) as pipeline:
        rows = measure(pipeline, arguments.count)
        plan = pipeline.plan("a red circle growing on a black background", seed=0)
    result = {
        "machine": describe(),
        "bundle_sha256": plan.bundle_sha256,
        "precision": plan.precision,
        "num_inference_steps": plan.num_inference_steps,
        "guidance_scale": plan.guidance_scale,
        "goals": GOALS,
        "right": summarise(rows),
        "rows": rows,
    }
    print(json.dumps({name: result[name] for name in ("precision", "goals", "right")}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
