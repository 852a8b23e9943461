"""How far a running video is. Knows steps, frames and seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Live:
    """Written by its worker alone. Another process may read a copy, because the clock is the same for all of them."""

    id: str
    started: float = field(default_factory=time.monotonic)
    stage: str = "loading"
    step: int = 0
    steps: int = 0
    frames: int = 0
    num_frames: int = 0
    first_step_at: float | None = None

    @property
    def progress(self) -> int:
        """Percent: nine tenths for the steps, the rest for the frames; 100 is for a finished file alone."""
        steps = 90 * self.step // self.steps if self.steps else 0
        frames = 10 * self.frames // self.num_frames if self.num_frames else 0
        return min(99, steps + frames)

    @property
    def step_s(self) -> float | None:
        """Seconds that a step takes, once two are done."""
        if self.first_step_at is None or self.step < 2 or self.stage != "denoise":
            return None
        return (self.now - self.first_step_at) / (self.step - 1)

    @property
    def now(self) -> float:
        """Seconds, from any start."""
        return time.monotonic()

    def to_dict(self) -> dict[str, Any]:
        """For clients."""
        step_s = self.step_s
        return {
            "progress": self.progress,
            "stage": self.stage,
            "step": self.step,
            "steps": self.steps,
            "frames_written": self.frames,
            "elapsed_seconds": round(self.now - self.started, 1),
            "seconds_left": None if step_s is None else round(step_s * (self.steps - self.step), 1),
        }
