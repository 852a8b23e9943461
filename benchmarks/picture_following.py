"""Judges whether the built-in model goes on from a picture as its prompt says, by plain image measurement.

    python -m benchmarks.picture_following --checkpoint FOLDER --output FILE

The checkpoint runs in Diffusers. Half of the pictures are frames that the renderer draws, half are last frames of the
model's own clips. Some prompts have other words than what the picture shows: then the picture must stay as it is, and
only the motion is the prompt's. A motion that the picture leaves no room for is not asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from mutoscope_bench.difference import psnr_db
from mutoscope_bench.machine_facts import describe
from mutoscope_export.demo.grammar import MOTIONS, Scene, all_scenes
from mutoscope_export.demo.pictures import OTHER_WORDS_SHARE, Place, continue_from, draw_pictured_clip
from mutoscope_export.demo.renderer import render_along
from mutoscope_export.demo.text import MAX_SEQUENCE_LENGTH
from PIL import Image

from . import prompt_following
from .prompt_following import FIRST_UNSEEN_SEED, Frames, judge, read_frame

LEAST_PSNR_DB = 28.0  # of the first frame against the picture
ASPECTS = ("first_frame", "colour", "background", "motion", "shape")
GOALS = {"first_frame": 1.0, "colour": 0.95, "background": 0.95, "motion": 0.90}
OWN_SEEDS = FIRST_UNSEEN_SEED + 500_000  # of the clips whose last frames are pictures


class Model(Protocol):
    """What is judged."""

    def generate(self, prompt: str, *, seed: int, image: Frames | None = None) -> Any:
        """A video with `frames`, uint8 `[T, H, W, 3]`, and `plan.seed`; it begins with `image`, uint8 `[H, W, 3]`."""
        ...


class DiffusersModel:
    """A checkpoint of the built-in model in Diffusers, at the defaults of its `mutoscope.json`."""

    def __init__(self, checkpoint: Path) -> None:
        diffusers.utils.logging.set_verbosity_error()
        self._from_text = diffusers.WanPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        self._from_picture = diffusers.WanImageToVideoPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        for pipeline in (self._from_text, self._from_picture):
            pipeline.set_progress_bar_config(disable=True)
        self._request = json.loads((checkpoint / "mutoscope.json").read_text("utf-8"))["defaults"]
        del self._request["fps"]
        self._request["max_sequence_length"] = MAX_SEQUENCE_LENGTH

    def generate(self, prompt: str, *, seed: int, image: Frames | None = None) -> Any:
        """As `Model` has it."""
        pipeline = self._from_text
        request = {"prompt": prompt, "generator": torch.Generator("cpu").manual_seed(seed), **self._request}
        if image is not None:
            pipeline, request["image"] = self._from_picture, Image.fromarray(image)
        frames = np.rint(255 * pipeline(output_type="np", **request).frames[0]).astype(np.uint8)
        return SimpleNamespace(frames=frames, plan=SimpleNamespace(seed=seed))


@dataclass(frozen=True)
class PictureRequest:
    """A picture uint8 `[H, W, 3]`, what it shows, and the scene whose words are the prompt; both have its motion."""

    picture: Frames
    shown: prompt_following.Judgement
    asked: Scene
    own: bool


def drawn_requests(count: int, seed: int = 0) -> Iterator[PictureRequest]:
    """With frames of the renderer, of any scene and from anywhere in its clip."""
    rng = np.random.default_rng((seed, 2))
    while count:
        drawn = draw_pictured_clip(rng, held_out=True)
        truth = render_along(drawn.shown, drawn.path)
        if judge(truth).motion == drawn.asked.motion:
            shown = drawn.shown
            words = prompt_following.Judgement(shown.colour, shown.background, shown.motion, shown.shape)
            yield PictureRequest(truth[0], words, drawn.asked, own=False)
            count -= 1


def own_requests(model: Model, count: int, seed: int = 0) -> Iterator[PictureRequest]:
    """With last frames of the model's clips from text, each with what the judge reads in it."""
    rng = np.random.default_rng((seed, 3))
    scenes, made = all_scenes(), 0
    while count:
        source, other = (scenes[index] for index in rng.integers(len(scenes), size=2))
        frames = model.generate(source.prompt(), seed=OWN_SEEDS + made).frames
        made += 1
        shown, motion = judge(np.repeat(frames[-1:], len(frames), 0)), MOTIONS[rng.integers(len(MOTIONS))]
        asked = replace(other if rng.random() < OTHER_WORDS_SHARE else source, motion=motion)
        if shown.colour and _has_room(frames[-1], motion, rng):
            yield PictureRequest(frames[-1], replace(shown, motion=motion), asked, own=True)
            count -= 1


def _has_room(picture: Frames, motion: str, rng: np.random.Generator) -> bool:
    """Whether the judge sees the motion in a clip that the renderer draws from the picture's place on."""
    mask = read_frame(picture.astype(np.float32)).mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    (top, bottom), (left, right) = ((edge[0], edge[-1] + 1) for edge in (rows, columns))
    path = continue_from(Place((left + right) / 2, (top + bottom) / 2, (right - left) / 2), motion, rng)
    return judge(render_along(Scene("white", "circle", motion, "black"), path)).motion == motion


def measure(model: Model, count: int) -> list[dict[str, Any]]:
    """One row a picture: what was asked, what was seen, which aspects are right."""
    rows = []
    own = count // 2
    for index, request in enumerate([*drawn_requests(count - own), *own_requests(model, own)]):
        seed = FIRST_UNSEEN_SEED + index
        frames = model.generate(request.asked.prompt(), seed=seed, image=request.picture).frames
        seen, shown = asdict(judge(frames)), asdict(request.shown)
        psnr = min(99.0, psnr_db(frames[:1], request.picture[None]))
        right = {aspect: seen[aspect] == shown[aspect] for aspect in ASPECTS[1:]}
        other = any(getattr(request.asked, aspect) != shown[aspect] for aspect in ("colour", "background"))
        row = {"prompt": request.asked.prompt(), "seed": seed, "own": request.own, "other_words": other}
        row |= {"shown": shown, "seen": seen, "psnr_db": round(psnr, 2), "first_frame": psnr >= LEAST_PSNR_DB}
        rows.append(row | right)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The share of pictures that came out right, by aspect, and the PSNR of first frames: of all, and by group."""
    groups = {
        "all": rows,
        "drawn": [row for row in rows if not row["own"]],
        "own": [row for row in rows if row["own"]],
        "other_words": [row for row in rows if row["other_words"]],
    }
    return {
        name: {
            "n": len(group),
            "psnr_db_mean": round(float(np.mean([row["psnr_db"] for row in group])), 2),
            "psnr_db_worst": min(row["psnr_db"] for row in group),
            **{aspect: round(float(np.mean([row[aspect] for row in group])), 4) for aspect in ASPECTS},
        }
        for name, group in groups.items()
        if group
    }


def goals_met(right: dict[str, dict[str, float]]) -> dict[str, bool]:
    """By aspect, whether the share of pictures reaches its goal."""
    return {aspect: right["all"][aspect] >= goal for aspect, goal in GOALS.items()}


def main() -> int:
    """Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200, help="of pictures")
    parser.add_argument("--text-count", type=int, default=0, help="of prompts without a picture, judged as well")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = DiffusersModel(arguments.checkpoint)
    result: dict[str, Any] = {"machine": describe(), "goals": GOALS}
    rows = measure(model, arguments.count)
    result |= {"right": summarise(rows), "rows": rows}
    met = result["met"] = goals_met(result["right"])
    if arguments.text_count:
        text_rows = prompt_following.measure(model, arguments.text_count)  # type: ignore[arg-type]
        right = prompt_following.summarise(text_rows)
        result["from_text"] = {"right": right, "met": prompt_following.goals_met(right), "rows": text_rows}
        met = met | {f"{name} from text": reached for name, reached in result["from_text"]["met"].items()}
    print(json.dumps({"met": met, "right": result["right"], "from_text": result.get("from_text", {}).get("right")}))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
