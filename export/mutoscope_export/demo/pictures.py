"""Clips that begin with a picture: any frame that the renderer draws, and where a motion leads from there.

Knows words and geometry. Knows nothing of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .grammar import MOTIONS, Scene, all_scenes, sample_scenes
from .renderer import HEIGHT, NUM_FRAMES, WIDTH, Float, Trajectory, draw_trajectory

EDGE = 2.0  # pixels that stay free between a shape and the border, as in every clip of the renderer
SMALLEST, LARGEST = 4.9, 30.8  # half the side of a shape's box, in pixels: the range of the renderer
OTHER_WORDS_SHARE = 0.4
SCENES = all_scenes()


@dataclass(frozen=True)
class Place:
    """Where a picture shows its shape and how large, in pixels."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class PicturedClip:
    """A clip that begins with a picture: what it shows, along which path, and what its prompt says.

    The prompt decides the motion. What the picture shows stays, even where the prompt has other words for it.
    """

    shown: Scene
    asked: Scene
    path: Trajectory


def draw_pictured_clip(rng: np.random.Generator, *, held_out: bool) -> PicturedClip:
    """Takes a frame of a clip of any scene, and goes on from there with any motion.

    In `OTHER_WORDS_SHARE` of the clips the prompt has the words of another scene. Unless `held_out` allows it, neither
    what is shown nor what is asked is a combination that training never sees.
    """
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    while True:
        source, other = sample_scenes(2, rng, SCENES)
        shown = replace(source, motion=motion)
        asked = replace(other, motion=motion) if rng.random() < OTHER_WORDS_SHARE else shown
        if held_out or not (shown.held_out or asked.held_out):
            return PicturedClip(shown, asked, continue_from(_place_in_a_clip(source, rng), motion, rng))


def _place_in_a_clip(scene: Scene, rng: np.random.Generator) -> Place:
    path, frame = draw_trajectory(scene, rng), rng.integers(NUM_FRAMES)
    return Place(float(path.x[frame]), float(path.y[frame]), float(path.radius[frame]))


def continue_from(place: Place, motion: str, rng: np.random.Generator, num_frames: int = NUM_FRAMES) -> Trajectory:
    """The path of a shape that is at `place` in the first frame and then moves as far as the frame has room.

    A shape that grows beside the border moves away from it. A shape that bounces falls first.
    """
    time = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)
    radius = np.full(num_frames, place.radius, np.float32)
    if motion in ("growing", "shrinking"):
        times = rng.uniform(1.9, 2.6)
        end = min(LARGEST, place.radius * times) if motion == "growing" else max(SMALLEST, place.radius / times)
        radius = place.radius + (end - place.radius) * time
    x, y = np.full(num_frames, place.x, np.float32), np.full(num_frames, place.y, np.float32)
    free = EDGE + place.radius
    match motion:
        case "moving right":
            x = _towards(place.x, WIDTH - free, time, rng)
        case "moving left":
            x = _towards(place.x, free, time, rng)
        case "moving down":
            y = _towards(place.y, HEIGHT - free, time, rng)
        case "moving up":
            y = _towards(place.y, free, time, rng)
        case "bouncing":
            y = _bouncing(place, time, rng)
    x, y = np.clip(x, radius + EDGE, WIDTH - EDGE - radius), np.clip(y, radius + EDGE, HEIGHT - EDGE - radius)
    return Trajectory(x.astype(np.float32), y.astype(np.float32), radius.astype(np.float32))


def _towards(start: float, border: float, time: Float, rng: np.random.Generator) -> Float:
    return start + (border - start) * rng.uniform(0.85, 1.0) * time


def _bouncing(place: Place, time: Float, rng: np.random.Generator) -> Float:
    """Twice down and up, as the renderer's own bounces, entered at the height of the picture."""
    top, bottom = EDGE + place.radius, HEIGHT - EDGE - place.radius
    floor = max(place.y, bottom - rng.uniform(0.0, 4.0))
    height = max(floor - place.y, (floor - top) * rng.uniform(0.75, 1.0))
    entered = math.acos((floor - place.y) / height) / math.pi if height else 0.0
    y: Float = floor - height * np.abs(np.cos(math.pi * (2.0 * time + entered)))
    return y
