"""The distillation in small: whose levels, which prompts, and that a student learns the mean velocity of a segment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mutoscope.solvers.solvers import build_schedule
from mutoscope_export.demo.distil import (
    BATCH_SIZE,
    FLOW,
    STUDENT_SCHEDULER,
    STUDENT_STEPS,
    TEACHER_STEPS,
    Paths,
    distil,
    draw_prompts,
    sample_paths,
)
from mutoscope_export.demo.grammar import PHRASINGS, all_scenes
from mutoscope_export.demo.text import build_tokenizer
from mutoscope_export.demo.training import read_record
from torch import nn

SHAPE = (4, 1, 2, 2)


class Student(nn.Module):
    """Takes and gives what the real one does; linear in the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing, self.bias = nn.Linear(4, 4), nn.Parameter(torch.zeros(4, 1, 1, 1))

    def forward(self, latents: torch.Tensor, sigma: torch.Tensor, *tokens: torch.Tensor) -> torch.Tensor:
        return self.mixing(latents.movedim(1, -1)).movedim(-1, 1) + self.bias


def test_one_step_of_the_student_is_eulers_over_one_segment_of_the_teacher() -> None:
    teacher = build_schedule("unipc", FLOW, TEACHER_STEPS).steps[:: TEACHER_STEPS // STUDENT_STEPS]
    student = build_schedule("unipc", STUDENT_SCHEDULER, STUDENT_STEPS).steps
    assert [step.sigma for step in student] == [step.sigma for step in teacher]
    assert [step.timestep for step in student] == [step.timestep for step in teacher]
    for step, end in zip(student, [*(step.sigma for step in student[1:]), 0.0], strict=True):
        np.testing.assert_allclose(step.solver_a[0], [1, 0, 0], atol=1e-6)
        np.testing.assert_allclose(step.solver_b[0], end - step.sigma, atol=1e-6)


def test_prompts_are_the_same_for_the_same_seed_and_never_of_a_held_out_scene() -> None:
    held_out = {scene.prompt(i) for scene in all_scenes() if scene.held_out for i in range(len(PHRASINGS))}
    prompts = draw_prompts(200, (1, 48))
    assert prompts == draw_prompts(200, (1, 48)) != draw_prompts(200, (1, 96))
    assert not held_out & set(prompts)


def test_paths_begin_as_noise_and_an_interrupted_run_goes_on_where_it_stopped(tmp_path) -> None:
    teacher, tokenizer = Student(), build_tokenizer()
    options = {"device": "cpu", "seed": 3}
    whole = sample_paths(teacher, tokenizer, SHAPE, 2 * BATCH_SIZE, tmp_path / "whole.npy", **options)
    sample_paths(teacher, tokenizer, SHAPE, BATCH_SIZE, tmp_path / "parts.npy", **options)
    parts = sample_paths(teacher, tokenizer, SHAPE, 2 * BATCH_SIZE, tmp_path / "parts.npy", **options)
    np.testing.assert_array_equal(parts.latents, whole.latents)
    assert parts.prompts == whole.prompts and len(whole.prompts) == 2 * BATCH_SIZE
    assert whole.latents.shape == (2 * BATCH_SIZE, STUDENT_STEPS + 1, *SHAPE)
    assert 0.9 < whole.latents[:, 0].astype(np.float32).std() < 1.1


def test_paths_of_another_seed_or_teacher_are_not_gone_on_with(tmp_path) -> None:
    teacher, tokenizer, file = Student(), build_tokenizer(), tmp_path / "paths.npy"
    sample_paths(teacher, tokenizer, SHAPE, BATCH_SIZE, file, device="cpu", seed=3)
    for other, seed in ((teacher, 4), (Student(), 3)):
        with pytest.raises(ValueError, match="another teacher or seed"):
            sample_paths(other, tokenizer, SHAPE, 2 * BATCH_SIZE, file, device="cpu", seed=seed)


def test_the_target_is_the_velocity_along_each_segment(tmp_path) -> None:
    """A student that knows the velocity of straight paths has nothing to learn from them."""
    rng, count = np.random.default_rng(0), 64
    levels = [*(step.sigma for step in build_schedule("unipc", STUDENT_SCHEDULER, STUDENT_STEPS).steps), 0.0]
    velocity = np.float32([1.5, -2.0, 0.5, 1.0]).reshape(4, 1, 1, 1)
    clean = 0.1 * rng.standard_normal((count, *SHAPE)).astype(np.float32)
    latents = np.stack([clean + level * velocity for level in levels], axis=1).astype(np.float16)
    student = Student()
    nn.init.zeros_(student.mixing.weight)
    nn.init.zeros_(student.mixing.bias)
    student.bias.data = torch.from_numpy(velocity)
    prompts = ["a red circle moving left on a black background"] * count
    distil(student, build_tokenizer(), Paths(latents, prompts), tmp_path, steps=20, seed=0)
    (row,) = read_record(tmp_path)
    assert all(row[name] < 0.02 for name in ("loss", *(f"segment_{n}" for n in range(1, STUDENT_STEPS + 1))))
