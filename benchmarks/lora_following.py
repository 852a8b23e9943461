"""Judges a LoRA that brings the built-in model a colour, by plain image measurement, at three strengths.

    python -m benchmarks.lora_following --lora build/lime/lime.safetensors --output build/lora_following.json

Prompts with the colour that the LoRA brings must show it at strength 1, not at strength 0, and something between at
one half. Prompts without that colour must come out as well as they do without the LoRA.

Knows pixels and the grammar. Knows nothing of what a LoRA is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mutoscope
import numpy as np
from mutoscope_bench.machine_facts import describe
from mutoscope_export.demo.grammar import EVERY_COLOUR, LEARNED_COLOURS, Scene, all_scenes

from .prompt_following import ASPECTS, FIRST_UNSEEN_SEED, Frames, choose_scenes, followed, judge, read_frame

STRENGTHS = (0.0, 0.5, 1.0)
GOALS = {"learned": 0.95, "between": 0.9, "known before": 0.0, "lost": 0.05}


def learned_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes in the colours that the LoRA brings, each once."""
    scenes = all_scenes(LEARNED_COLOURS)
    return [scenes[index] for index in np.random.default_rng(seed).choice(len(scenes), count, replace=False)]


def distance_to(colour: str, frames: Frames) -> float:
    """How far the shape is from a colour, in levels of RGB; the median of frames uint8 `[T, H, W, 3]`."""
    wanted = np.asarray(EVERY_COLOUR[colour], np.float32)
    return float(np.median([np.linalg.norm(read_frame(frame.astype(np.float32)).colour - wanted) for frame in frames]))


def measure_learned(pipeline: mutoscope.Pipeline, lora: Path, count: int) -> list[dict[str, Any]]:
    """One row a prompt with a new colour: what was seen at each strength, and how far it was from the colour."""
    rows = []
    for index, scene in enumerate(learned_scenes(count)):
        by_strength = {}
        for strength in STRENGTHS:
            frames = _generate(pipeline, scene, FIRST_UNSEEN_SEED + index, lora, strength)
            seen = judge(frames, EVERY_COLOUR)
            distance = round(distance_to(scene.colour, frames), 1)
            by_strength[str(strength)] = followed(seen, scene) | {"seen": seen.colour, "distance": distance}
        rows.append({"prompt": scene.prompt(), "seed": FIRST_UNSEEN_SEED + index} | by_strength)
    return rows


def measure_known(pipeline: mutoscope.Pipeline, lora: Path, count: int) -> list[dict[str, Any]]:
    """One row a prompt of the model's own: which aspects are right without the LoRA, and which with it."""
    rows = []
    for index, scene in enumerate(choose_scenes(count)):
        row: dict[str, Any] = {"prompt": scene.prompt(), "seed": FIRST_UNSEEN_SEED + index}
        for strength in (0.0, 1.0):
            seen = judge(_generate(pipeline, scene, row["seed"], lora, strength), EVERY_COLOUR)
            row[str(strength)] = followed(seen, scene)
        rows.append(row)
    return rows


def _generate(pipeline: mutoscope.Pipeline, scene: Scene, seed: int, lora: Path, strength: float) -> Frames:
    loras = (mutoscope.Lora(lora, strength),) if strength else ()
    frames: Frames = pipeline.generate(mutoscope.VideoRequest(prompt=scene.prompt(), seed=seed, loras=loras)).frames
    return frames


def summarise(learned: list[dict[str, Any]], known: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of prompts: right by aspect and strength; `between`, where half the strength lies between the others."""

    def share(rows: list[dict[str, Any]], strength: str) -> dict[str, float]:
        return {aspect: round(float(np.mean([row[strength][aspect] for row in rows])), 4) for aspect in ASPECTS}

    distances = np.array([[row[str(strength)]["distance"] for strength in STRENGTHS] for row in learned])
    return {
        "learned": {str(strength): share(learned, str(strength)) for strength in STRENGTHS},
        "distance": {str(strength): round(float(distances[:, i].mean()), 1) for i, strength in enumerate(STRENGTHS)},
        "between": round(float(np.mean((np.diff(distances, axis=1) <= 0).all(axis=1))), 4),
        "known": {strength: share(known, strength) for strength in ("0.0", "1.0")},
    }


def goals_met(right: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the colour is there at strength 1 and not without, half lies between, and nothing else is lost."""
    lost = max(right["known"]["0.0"][aspect] - right["known"]["1.0"][aspect] for aspect in ASPECTS)
    return {
        "learned": right["learned"]["1.0"]["colour"] >= GOALS["learned"],
        "between": right["between"] >= GOALS["between"],
        "known before": right["learned"]["0.0"]["colour"] <= GOALS["known before"],
        "lost": lost <= GOALS["lost"],
    }


def main() -> int:
    """Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the built-in one when not given")
    parser.add_argument("--lora", type=Path, required=True, help="file that mutoscope_export.demo.train_lora wrote")
    parser.add_argument("--count", type=int, default=64, help="of prompts with the new colour, and of others")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with mutoscope.Pipeline.load(arguments.bundle) as pipeline:
        prompt = learned_scenes(1)[0].prompt()
        plan = pipeline.plan(mutoscope.VideoRequest(prompt=prompt, loras=(mutoscope.Lora(arguments.lora),)))
        learned = measure_learned(pipeline, arguments.lora, arguments.count)
        known = measure_known(pipeline, arguments.lora, arguments.count)
    right = summarise(learned, known)
    met = goals_met(right)
    result = {
        "machine": describe(),
        "bundle_sha256": plan.bundle_sha256,
        "lora_sha256": plan.loras[0].sha256,
        "goals": GOALS,
        "met": met,
        "right": right,
        "rows": {"learned": learned, "known": known},
    }
    print(json.dumps({name: result[name] for name in ("goals", "met", "right")}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
