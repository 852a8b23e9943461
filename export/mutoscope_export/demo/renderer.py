"""Draws the clips that the built-in model is trained on, and the truth that its judge is tested on.

Knows geometry and shading. Knows nothing of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grammar import BACKGROUNDS, EVERY_COLOUR, Scene

HEIGHT = WIDTH = 96
NUM_FRAMES = 17
FPS = 8

RING_HOLE = 0.62  # inner over outer radius
TRIANGLE_HEIGHT = math.sqrt(3) / 2  # half the height of an equilateral triangle of half-width 1

Float = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Trajectory:
    """Where the shape is and how large, frame by frame: each `[T]`, in pixels."""

    x: Float
    y: Float
    radius: Float


def draw_trajectory(scene: Scene, rng: np.random.Generator, num_frames: int = NUM_FRAMES) -> Trajectory:
    """Draws start, path and size for a scene's motion and size words."""
    time = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)
    low, high = {"small": (9.0, 12.0), "large": (19.0, 22.5), None: (13.0, 19.0)}[scene.size]
    radius = np.full(num_frames, rng.uniform(low, high), np.float32)
    if scene.motion in ("growing", "shrinking"):
        smallest, largest = {"small": (5.5, 13.0), "large": (12.0, 28.0), None: (8.0, 20.0)}[scene.size]
        smallest, largest = smallest * rng.uniform(0.9, 1.1), largest * rng.uniform(0.9, 1.1)
        radius = smallest + (largest - smallest) * (time if scene.motion == "growing" else 1 - time)
    margin = float(radius.max()) + 2.0
    x = np.full(num_frames, rng.uniform(margin, WIDTH - margin), np.float32)
    y = np.full(num_frames, rng.uniform(margin, HEIGHT - margin), np.float32)
    room = WIDTH - 2 * margin
    start = margin + rng.uniform(0.0, 0.15) * room
    end = WIDTH - margin - rng.uniform(0.0, 0.15) * room
    forward, backward = start + (end - start) * time, end + (start - end) * time
    match scene.motion:
        case "moving right":
            x = forward
        case "moving left":
            x = backward
        case "moving down":
            y = forward
        case "moving up":
            y = backward
        case "bouncing":
            floor = HEIGHT - margin - rng.uniform(0.0, 4.0)
            height = (floor - margin) * rng.uniform(0.75, 1.0)
            y = floor - height * np.abs(np.cos(math.pi * (2.0 * time + rng.uniform(-0.1, 0.1))))
    return Trajectory(x.astype(np.float32), y.astype(np.float32), radius.astype(np.float32))


def signed_distance(shape: str, dx: Float, dy: Float, radius: Float) -> Float:
    """Signed distance in pixels to the outline of a shape, negative inside.

    `dx`, `dy` are offsets from its centre, x to the right and y down. `radius` is half the side of the bounding box.
    """
    distance: Float
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - radius
        case "ring":
            middle = radius * (1 + RING_HOLE) / 2
            half_thickness = radius * (1 - RING_HOLE) / 2
            distance = np.abs(np.hypot(dx, dy) - middle) - half_thickness
        case "square":
            distance = np.maximum(np.abs(dx), np.abs(dy)) - radius
        case "triangle":  # equilateral, point up, its bounding box centred
            base = dy - radius * TRIANGLE_HEIGHT
            side = np.abs(dx) * TRIANGLE_HEIGHT - (dy + radius * TRIANGLE_HEIGHT) / 2
            distance = np.maximum(base, side)
        case _:
            raise ValueError(f"unknown shape {shape!r}")
    return distance


def render(scene: Scene, rng: np.random.Generator, num_frames: int = NUM_FRAMES) -> NDArray[np.uint8]:
    """Draws one clip of a scene: uint8 `[T, H, W, 3]`."""
    return render_along(scene, draw_trajectory(scene, rng, num_frames))


def render_along(scene: Scene, path: Trajectory) -> NDArray[np.uint8]:
    """Draws a scene's shape along a path, frame by frame: uint8 `[T, H, W, 3]`."""
    rows = np.arange(HEIGHT, dtype=np.float32)[None, :, None] + 0.5
    columns = np.arange(WIDTH, dtype=np.float32)[None, None, :] + 0.5
    radius = path.radius[:, None, None]
    dx, dy = columns - path.x[:, None, None], rows - path.y[:, None, None]
    coverage = np.clip(0.5 - signed_distance(scene.shape, dx, dy, radius), 0.0, 1.0)[..., None]
    # Lit from the upper left: at most 8 % brighter or darker, so that the colour stays the colour.
    light = 1.0 - 0.08 * np.clip((dx + dy) / (1.5 * radius), -1.0, 1.0)[..., None]
    vignette = 1.03 - 0.06 * (rows / HEIGHT)[..., None]
    foreground = np.asarray(EVERY_COLOUR[scene.colour], np.float32) * light
    background = np.asarray(BACKGROUNDS[scene.background], np.float32) * vignette
    pixels: Float = background + (foreground - background) * coverage
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
