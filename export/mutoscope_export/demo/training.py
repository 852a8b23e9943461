"""The loop both trainings share: learning rate, averaged weights, resumable state, a record of loss and time.

Knows optimisation. Knows nothing of videos or prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .muon import Muon

RECORD = "record.jsonl"
STATE = "state.pt"
KEPT_STATES = 3  # a training that goes astray can go back


@dataclass(frozen=True)
class TrainingSchedule:
    """How many steps, and the learning rates at their peak."""

    steps: int
    matrix_rate: float = 0.02  # Muon, for the weights of linear and convolutional layers
    vector_rate: float = 0.002  # AdamW, for the rest
    warmup_steps: int = 50
    average_decay: float = 0.999

    def gentler(self, times: float) -> TrainingSchedule:
        """With rates so many times lower, for what is trained already."""
        return replace(self, matrix_rate=self.matrix_rate / times, vector_rate=self.vector_rate / times)

    def factor(self, step: int) -> float:
        """What both learning rates are multiplied with: a linear warm-up, then a cosine down to a fiftieth."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))


def sha256_of_weights(module: nn.Module, beside: Any = None) -> str:
    """The same on every device; `beside` is what else decides what the module gives, as JSON has it."""
    digest = hashlib.sha256(b"" if beside is None else json.dumps(beside).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()


class Training:
    """A resumable training of one module, kept in a folder: `state.pt` (our own, never shipped) and `record.jsonl`.

    The averaged weights are what is exported; `averaged` holds them. The two states before the newest are
    `state.1.pt` and `state.2.pt`: to go back to one, rename it.
    """

    def __init__(
        self, module: nn.Module, schedule: TrainingSchedule, folder: Path, *, save_every_s: float = 240.0
    ) -> None:
        self.module = module
        self.schedule = schedule
        self.folder = folder
        self.step = 0
        self.elapsed_s = 0.0
        self._save_every_s = save_every_s
        self.averaged = {name: value.detach().clone() for name, value in module.state_dict().items()}
        layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d))]
        matrices = [layer.weight for layer in layers]
        known = {id(weight) for weight in matrices}
        vectors = [weight for weight in module.parameters() if id(weight) not in known]
        self._optimizers = {
            "muon": Muon(matrices, lr=schedule.matrix_rate, weight_decay=0.01),
            "adamw": torch.optim.AdamW(vectors, lr=schedule.vector_rate, betas=(0.9, 0.99), weight_decay=0.0),
        }
        folder.mkdir(parents=True, exist_ok=True)
        if self._state_file.exists():
            self._resume()

    @property
    def _state_file(self) -> Path:
        return self.folder / STATE

    @property
    def _record_file(self) -> Path:
        return self.folder / RECORD

    def _resume(self) -> None:
        state = torch.load(self._state_file, weights_only=True, map_location=next(self.module.parameters()).device)
        self.module.load_state_dict(state["module"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.averaged = state["averaged"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self._forget_rows_after_step()

    def _forget_rows_after_step(self) -> None:
        """What was recorded after the state was saved is done, and recorded, once more."""
        if self._record_file.exists():
            kept = [json.dumps(row) + "\n" for row in read_record(self.folder) if row["step"] <= self.step]
            temporary = self._record_file.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8", newline="\n")
            os.replace(temporary, self._record_file)

    def save(self) -> None:
        """Writes what `state.pt` resumes from."""
        state = {
            "module": self.module.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "averaged": self.averaged,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        temporary = self._state_file.with_suffix(".tmp")
        torch.save(state, temporary)
        self._set_aside()
        os.replace(temporary, self._state_file)

    def _set_aside(self) -> None:
        """Keeps the states before the next one, but for the oldest. A `state.pt` is there at every moment."""
        aside = [self.folder / f"state.{age}.pt" for age in range(1, KEPT_STATES)]
        for index in range(len(aside) - 1, 0, -1):
            if aside[index - 1].exists():
                os.replace(aside[index - 1], aside[index])
        if self._state_file.exists():
            shutil.copyfile(self._state_file, aside[0])

    def load_averaged(self) -> None:
        """Puts the averaged weights into the module, for evaluation and export."""
        self.module.load_state_dict(self.averaged)

    def run(
        self,
        loss_of_step: Callable[[int], dict[str, torch.Tensor]],
        evaluate: Callable[[], dict[str, Any]] | None = None,
        *,
        evaluate_every: int = 500,
        report_every: int = 20,
    ) -> None:
        """Trains from the current step to the last. `loss_of_step(step)` returns named losses; "loss" is minimised.

        Randomness must come from the step number, so that a resumed run draws what an unbroken one would.
        """
        torch.set_flush_denormal(True)  # weights that no gradient reaches yet decay into them, and they are slow
        try:
            self._run(loss_of_step, evaluate, evaluate_every, report_every)
        finally:
            torch.set_flush_denormal(False)

    def _run(
        self,
        loss_of_step: Callable[[int], dict[str, torch.Tensor]],
        evaluate: Callable[[], dict[str, Any]] | None,
        evaluate_every: int,
        report_every: int,
    ) -> None:
        saved_at = started = time.monotonic()
        already_s = self.elapsed_s
        for step in range(self.step, self.schedule.steps):
            factor = self.schedule.factor(step)
            self._optimizers["muon"].param_groups[0]["lr"] = factor * self.schedule.matrix_rate
            self._optimizers["adamw"].param_groups[0]["lr"] = factor * self.schedule.vector_rate
            losses = loss_of_step(step)
            losses["loss"].backward()
            gradient_norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimizer in self._optimizers.values():
                if torch.isfinite(gradient_norm):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self._average(step)
            self.step = step + 1
            now = time.monotonic()
            self.elapsed_s = already_s + now - started
            if self.step % report_every == 0:
                self._record({name: float(value.detach()) for name, value in losses.items()})
            if evaluate is not None and self.step % evaluate_every == 0:
                self._record(evaluate())
            if now - saved_at > self._save_every_s:
                self.save()
                saved_at = now
        self.save()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.schedule.average_decay, (1 + step) / (10 + step))
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)

    def _record(self, values: dict[str, Any]) -> None:
        rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
        row = {"step": self.step, "elapsed_s": round(self.elapsed_s, 1), **rounded}
        with self._record_file.open("a", encoding="utf-8", newline="\n") as record:
            record.write(json.dumps(row) + "\n")


def averaged_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a training in `folder` averaged until it was saved last, on the CPU."""
    averaged: dict[str, torch.Tensor] = torch.load(folder / STATE, weights_only=True, map_location="cpu")["averaged"]
    return averaged


def read_record(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a training's record, oldest first."""
    for line in (folder / RECORD).read_text("utf-8").splitlines():
        yield json.loads(line)
