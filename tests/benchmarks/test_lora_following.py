"""The judge of such a LoRA on drawn clips: a right LoRA passes, and each fault misses its goal."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mutoscope_export.demo.grammar import COLOURS, EVERY_COLOUR, LEARNED_COLOURS, Scene, all_scenes
from mutoscope_export.demo.renderer import render
from mutoscope_export.demo.train_lora import LORA

from benchmarks.lora_following import distance_to, goals_met, learned_scenes, measure_known, measure_learned, summarise

ROOT = Path(__file__).parents[2]
SCENES = {scene.prompt(): scene for scene in all_scenes(EVERY_COLOUR)}
COUNT = 8


class Drawing:
    """A model that draws what the prompt says, with a LoRA that brings the new colour by strength."""

    def __init__(
        self, change: Callable[[Scene, float], tuple[Scene, float]] = lambda scene, strength: (scene, strength)
    ):
        self.change = change

    def generate(self, request):
        strength = request.loras[0].strength if request.loras else 0.0
        scene, strength = self.change(SCENES[request.prompt], strength)
        drawn = render(scene, np.random.default_rng(request.seed)).astype(float)
        if scene.colour in LEARNED_COLOURS:
            known = render(replace(scene, colour="green"), np.random.default_rng(request.seed)).astype(float)
            drawn = known + strength * (drawn - known)
        return SimpleNamespace(frames=np.rint(drawn).astype(np.uint8))


def right(model):
    lora = Path("example.safetensors")
    return summarise(measure_learned(model, lora, COUNT), measure_known(model, lora, COUNT))


def test_a_lora_that_brings_its_colour_by_strength_meets_each_goal() -> None:
    found = right(Drawing())
    assert goals_met(found) == dict.fromkeys(("learned", "between", "known before", "lost"), True)
    assert found["learned"]["1.0"]["colour"] == 1.0 and found["learned"]["0.0"]["colour"] == 0.0


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda scene, strength: (scene, 0.0), {"learned"}),
        (lambda scene, strength: (scene, 1.0), {"known before"}),
        (lambda scene, strength: (scene, 2 * strength if strength < 1 else 0.8), {"between"}),
        (
            lambda scene, strength: (
                replace(scene, colour="lime") if strength == 1.0 and scene.colour in COLOURS else scene,
                strength,
            ),
            {"lost"},
        ),
    ],
    ids=["no effect", "without the LoRA too", "half is more than whole", "other colours too"],
)
def test_each_fault_misses_its_goal(change, missed) -> None:
    met = goals_met(right(Drawing(change)))
    assert {name for name, reached in met.items() if not reached} == missed


def test_the_distance_is_that_of_the_drawn_colour() -> None:
    clip = render(Scene("green", "circle", "staying still", "black"), np.random.default_rng(0))
    expected = np.linalg.norm(np.subtract(COLOURS["green"], LEARNED_COLOURS["lime"]))
    assert distance_to("lime", clip) == pytest.approx(expected, abs=6)  # the shape is lit from the upper left


def test_each_scene_is_asked_once_and_has_a_new_colour() -> None:
    scenes = learned_scenes(64)
    assert len(set(scenes)) == 64 and {scene.colour for scene in scenes} == set(LEARNED_COLOURS)


def test_the_page_of_loras_has_the_figures_that_were_judged() -> None:
    found = json.loads((ROOT / "benchmarks/results/lora_following.json").read_text("utf-8"))
    page = (ROOT / "docs/lora.md").read_text("utf-8")
    assert found["lora_sha256"] == hashlib.sha256(LORA.read_bytes()).hexdigest()
    none, half, whole = (
        f"{100 * found['right']['learned'][strength]['colour']:.0f} %" for strength in ("0.0", "0.5", "1.0")
    )
    assert f"{whole} show it at strength 1, {half} at one half, and {none} without the LoRA" in page
    wrong = [row["prompt"] for row in found["rows"]["learned"] if not row["1.0"]["colour"]]
    assert all(re.search("small|ring|triangle", prompt) for prompt in wrong)
    lost = [row for row in found["rows"]["known"] if row["0.0"]["colour"] and not row["1.0"]["colour"]]
    assert f"prompts in other colours, {len(lost)} lose theirs" in page
