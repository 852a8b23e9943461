"""What the class of a Wan pipeline decides: here, the sampler of FastVideo's few-step models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from mutoscope.bundle.manifest import Manifest
from mutoscope.solvers.solvers import build_schedule
from mutoscope_export.declaration import declared_manifest
from mutoscope_export.opening import open_checkpoint
from numpy.typing import NDArray

from tests.export.spoiling import edit

TIMESTEPS = [1000, 757, 522]
Array = NDArray[np.float64]
Network = Callable[[Array, float], Array]


@pytest.fixture
def manifest(copy: Path) -> Manifest:
    """Of a checkpoint for WanDMDPipeline, whose own scheduler is another."""
    edit(copy / "model_index.json", lambda index: index.update(_class_name="WanDMDPipeline"))
    return declared_manifest(open_checkpoint(copy))


def velocity(sample: Array, timestep: float) -> Array:
    return np.sin(3 * sample) + timestep / 1000


def as_fastvideo_samples(network: Network, noises: Array) -> Array:
    """The loop of its DmdDenoisingStage, which looks up the level of a timestep in a scheduler that it makes itself."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)

    def level(timestep: float) -> float:
        nearest = torch.argmin((scheduler.timesteps - timestep).abs())
        return float(scheduler.sigmas[nearest])

    sample = noises[0]
    for number, timestep in enumerate(TIMESTEPS):
        clean = sample - level(timestep) * network(sample, timestep)
        if number == len(TIMESTEPS) - 1:
            return clean
        after = level(TIMESTEPS[number + 1])
        sample = (1 - after) * clean + after * noises[number + 1]
    raise AssertionError


def test_a_few_step_model_is_sampled_as_fastvideo_samples_it(manifest: Manifest) -> None:
    defaults = manifest.defaults
    assert (defaults.scheduler, defaults.num_inference_steps, defaults.guidance_scale) == ("lcm", 3, 1.0)
    schedule = build_schedule("lcm", manifest.scheduler, defaults.num_inference_steps, defaults.sigmas)
    assert [step.timestep for step in schedule.steps] == TIMESTEPS
    noises = np.random.default_rng(0).standard_normal((schedule.noise_rows, 50))
    state = noises
    for step in schedule.steps:
        state = step.solver_a @ state + step.solver_b[:, None] * velocity(state[0], step.timestep)
    np.testing.assert_allclose(state[0], as_fastvideo_samples(velocity, noises), rtol=0, atol=1e-6)


def test_the_scheduler_of_a_few_step_checkpoint_is_not_asked_for(copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.update(_class_name="WanDMDPipeline", scheduler=[None, None]))
    (copy / "scheduler" / "scheduler_config.json").unlink()
    opened = open_checkpoint(copy)
    assert "scheduler" not in opened.classes
    assert opened.description.scheduler["_class_name"] == "FlowMatchLCMScheduler"
