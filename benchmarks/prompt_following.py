"""Judges whether the built-in model's clips show what their prompts say, by plain image measurement.

    python -m benchmarks.prompt_following --count 240 --output benchmarks/results/prompt_following.json

Knows pixels and the grammar. Knows nothing of the model: `judge` sees frames only, and is tested on rendered truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mutoscope
import numpy as np
from mutoscope_bench.machine_facts import describe
from mutoscope_export.demo.grammar import BACKGROUNDS, COLOURS, Scene, all_scenes
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
ASPECTS = ("colour", "background", "motion", "shape")
GOALS = {"colour": 0.95, "background": 0.95, "motion": 0.90, "shape": 0.85}
FIRST_UNSEEN_SEED = 1_000_000  # training draws its noise elsewhere


LEAST_AGREEMENT = 0.8  # of the frames, before a word is said of the clip
LEAST_PIXELS = 12  # of a shape that counts as visible
LONGEST_STEP = 32.0  # pixels between neighbouring frames; the fastest bounce takes 29
STRAY_SHARE = 0.15  # of the foreground that may lie apart from the shape


@dataclass(frozen=True)
class Judgement:
    """What the frames show, in the grammar's words; `None` where nothing could be told."""

    colour: str | None
    background: str | None
    motion: str | None
    shape: str | None


def judge(frames: Frames, colours: Mapping[str, tuple[int, int, int]] = COLOURS) -> Judgement:
    """Reads uint8 `[T, H, W, 3]` frames: one shape of one of these colours on a plain background."""
    readings = [read_frame(frame) for frame in frames.astype(np.float32)]
    background = _agreed([_nearest(reading.background, BACKGROUNDS) for reading in readings])
    foreground = np.stack([reading.mask for reading in readings])
    mask = _largest_component(foreground)
    visible = mask.sum(axis=(1, 2)) >= LEAST_PIXELS
    if visible.sum() < len(frames) - 1:
        return Judgement(None, background, None, None)
    colour = _agreed([_nearest(readings[index].colour, colours) for index in np.flatnonzero(visible)])
    mask, whole = mask[visible], mask.sum() >= (1 - STRAY_SHARE) * foreground.sum()
    return Judgement(colour, background, _motion(mask), _shape(mask) if whole else None)


def _nearest(colour: NDArray[Any], names: Mapping[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.asarray(names[name]))))


def _agreed(words: Sequence[str | None]) -> str | None:
    """The word that enough frames say."""
    word, count = Counter(words).most_common(1)[0]
    return word if count >= LEAST_AGREEMENT * len(words) else None


class Reading(NamedTuple):
    """Of one frame: the two colours, each `[3]`, and which pixels are the shape's, `[H, W]`."""

    background: NDArray[Any]
    colour: NDArray[Any]
    mask: NDArray[np.bool_]


def read_frame(pixels: NDArray[Any]) -> Reading:
    """The two colours of one frame, and which pixels lie nearer to the foreground's; the border tells them apart."""
    border = np.concatenate([side.reshape(-1, 3) for side in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])])
    difference = pixels - np.median(border, axis=0)
    clear = np.linalg.norm(difference, axis=-1) > 60
    if clear.sum() < LEAST_PIXELS:
        everywhere = np.median(pixels, axis=(0, 1))
        return Reading(everywhere, everywhere, np.zeros_like(clear))
    towards = np.median(difference[clear], axis=0)
    mask = difference @ towards > 0.5 * towards @ towards
    return Reading(np.median(pixels[~mask], axis=0), np.median(pixels[mask], axis=0), mask)


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keeps each frame's largest patch of touching pixels; labels spread from pixel to pixel until all stand still."""
    labels = mask * np.arange(1, mask[0].size + 1, dtype=np.int32).reshape(mask[0].shape)
    before = np.zeros_like(labels)
    while not np.array_equal(labels, before):
        before = labels.copy()
        for along in (labels, labels.swapaxes(1, 2)):
            np.maximum(along[:, 1:], along[:, :-1], out=along[:, 1:])
            np.maximum(along[:, :-1], along[:, 1:], out=along[:, :-1])
        labels *= mask
    largest = [np.bincount(frame[frame > 0], minlength=2).argmax() for frame in labels]
    return mask & (labels == np.reshape(largest, (-1, 1, 1)))


def _motion(mask: NDArray[np.bool_]) -> str | None:
    area = mask.sum(axis=(1, 2)).astype(np.float64)
    y = mask.sum(axis=2) @ np.arange(mask.shape[1]) / area
    x = mask.sum(axis=1) @ np.arange(mask.shape[2]) / area
    if np.hypot(np.diff(x), np.diff(y)).max() > LONGEST_STEP:
        return None
    size = np.sqrt(area)
    ratio = area[-3:].mean() / area[:3].mean()
    if ratio > 1.6 or ratio < 1 / 1.6:
        return ("growing" if ratio > 1 else "shrinking") if _goes_one_way(size) else None
    across, down = x[-2:].mean() - x[:2].mean(), y[-2:].mean() - y[:2].mean()
    if _bounces(y) and np.ptp(y) > 1.5 * np.ptp(x):
        return "bouncing"
    if max(np.ptp(x), np.ptp(y)) < 6:
        return "staying still"
    if abs(across) > 1.5 * abs(down) and _goes_one_way(x):
        return "moving right" if across > 0 else "moving left"
    if abs(down) > 1.5 * abs(across) and _goes_one_way(y):
        return "moving down" if down > 0 else "moving up"
    return None


def _goes_one_way(values: NDArray[Any]) -> bool:
    """Whether nearly every step leads from the first value to the last; frames in the wrong order go to and fro."""
    return bool(np.abs(np.diff(values)).sum() < 1.5 * abs(values[-1] - values[0]))


def _bounces(y: NDArray[Any]) -> bool:
    """Whether the height goes up and down, and turns four times at most, as two bounces do, with one to spare."""
    steps = np.diff(y)
    directions = np.sign(steps[np.abs(steps) > 1.5])
    turns = np.count_nonzero(np.diff(directions))
    return bool(np.ptp(y) > 10 and np.abs(steps).sum() > 1.6 * np.ptp(y) and turns <= 5)


def _shape(mask: NDArray[np.bool_]) -> str | None:
    return _agreed([_shape_of_frame(frame) for frame in mask])


def _shape_of_frame(mask: NDArray[np.bool_]) -> str | None:
    """By how much of its bounding box, about as high as wide, a shape fills, and whether its middle is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    if not 0.6 < height / width < 1.6:
        return None
    if box[height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 2].mean() < 0.5:
        return "ring"
    return "triangle" if box.mean() < 0.65 else "circle" if box.mean() < 0.89 else "square"


def choose_scenes(count: int, seed: int = 0) -> list[Scene]:
    """A quarter from the combinations that training never saw, the rest from all others."""
    rng = np.random.default_rng(seed)
    scenes = all_scenes()
    held_out = [scene for scene in scenes if scene.held_out]
    seen = [scene for scene in scenes if not scene.held_out]
    quarter = count // 4
    chosen = [held_out[i] for i in rng.choice(len(held_out), quarter, replace=False)]
    return chosen + [seen[i] for i in rng.choice(len(seen), count - quarter, replace=False)]


def followed(seen: Judgement, scene: Scene) -> dict[str, bool]:
    """By aspect, whether a clip shows what was asked for."""
    return {aspect: getattr(seen, aspect) == getattr(scene, aspect) for aspect in ASPECTS}


def measure(pipeline: mutoscope.Pipeline, count: int, **parameters: Any) -> list[dict[str, Any]]:
    """One row a prompt: what was asked, what was seen, which aspects are right."""
    rows = []
    for index, scene in enumerate(choose_scenes(count)):
        video = pipeline.generate(scene.prompt(), seed=FIRST_UNSEEN_SEED + index, **parameters)
        seen = judge(video.frames)
        asked = {"prompt": scene.prompt(), "seed": video.plan.seed, "held_out": scene.held_out}
        rows.append(asked | {"seen": asdict(seen)} | followed(seen, scene))
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


def goals_met(right: dict[str, dict[str, float]]) -> dict[str, bool]:
    """By aspect, whether the share of prompts followed reaches its goal."""
    return {aspect: right["all"][aspect] >= goal for aspect, goal in GOALS.items()}


def main() -> int:
    """Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the built-in one when not given")
    parser.add_argument("--precision", help="of the denoiser")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with mutoscope.Pipeline.load(arguments.bundle, precision=arguments.precision) as pipeline:
        rows = measure(pipeline, arguments.count)
        plan = pipeline.plan("a red circle growing on a black background", seed=0)
    right = summarise(rows)
    result: dict[str, Any] = {
        "machine": describe(),
        "bundle_sha256": plan.bundle_sha256,
        "precision": plan.placements.precision,
        "num_inference_steps": plan.schedule.num_inference_steps,
        "guidance_scale": plan.guidance.scale,
        "goals": GOALS,
        "met": goals_met(right),
        "right": right,
        "rows": rows,
    }
    print(json.dumps({name: result[name] for name in ("precision", "goals", "met", "right")}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
