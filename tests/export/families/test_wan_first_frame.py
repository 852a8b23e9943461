"""The denoiser whose first frame may be given, against Diffusers' network with a timestep for each token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mutoscope_export.families.wan import denoiser, first_frame

from tests.export.families.test_wan_denoiser import CONFIGS, random_transformer

SIZES = {"B": 2, "L": 5, "F": 3, "h": 6, "w": 8, "K": 3}
TOKENS_OF_A_FRAME = 3 * 4


@pytest.mark.parametrize("is_given", [True, False])
def test_a_given_frame_is_clean_before_and_after_the_step_and_the_others_are_those_of_diffusers(is_given: bool) -> None:
    transformer = random_transformer(**CONFIGS["wan"])
    inputs = first_frame.example_inputs(transformer, SIZES)
    inputs["given"][0] = is_given
    with torch.no_grad():
        next_state, peak = first_frame.FirstFrameStep(transformer)(**inputs)
        seen = inputs["latents"].clone()
        timesteps = inputs["timestep"].expand(3 * TOKENS_OF_A_FRAME).clone()
        if is_given:
            seen[:, 0] = inputs["condition"][:, 0]
            timesteps[:TOKENS_OF_A_FRAME] = 0
        seen, timesteps = seen.expand(2, -1, -1, -1, -1), timesteps.expand(2, -1)
        velocities = transformer(seen, timesteps, inputs["prompt_embeds"]).sample
    values = {name: value.double().numpy() for name, value in inputs.items()}
    velocity = np.einsum("b,b...->...", values["guidance_weights"], velocities.double().numpy())
    expected = np.einsum("ij,j...->i...", values["solver_a"], values["state"])
    expected += np.multiply.outer(values["solver_b"], velocity)
    if is_given:
        expected[:, :, 0] = values["condition"][:, 0]
    np.testing.assert_allclose(next_state, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(peak, np.abs(velocity).max(), rtol=2e-5)


def test_without_a_given_frame_the_step_is_that_of_text_to_video() -> None:
    transformer = random_transformer(**CONFIGS["wan"])
    inputs = first_frame.example_inputs(transformer, SIZES)
    inputs["given"].zero_()
    plain = {name: value for name, value in inputs.items() if name not in ("condition", "given")}
    with torch.no_grad():
        made, expected = (
            first_frame.FirstFrameStep(transformer)(**inputs)[0],
            denoiser.DenoiserStep(transformer)(**plain)[0],
        )
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
