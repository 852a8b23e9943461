"""A video with LoRAs runs the other form of its denoiser, and of the two forms one is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mutoscope import Lora, Pipeline, RuntimeOptions
from mutoscope_engines.testing import FakeBackend
from safetensors.numpy import save_file

from tests.bundles import Q, lora_form


def test_the_form_is_opened_once_for_videos_with_loras_and_closed_for_one_without(
    make_bundle: Any, tmp_path: Path
) -> None:
    stem = f"transformer.{Q.removesuffix('.weight')}"
    for name, rank in (("a.safetensors", 2), ("b.safetensors", 3)):
        halves = {f"{stem}.lora_A.weight": np.ones((rank, 6)), f"{stem}.lora_B.weight": np.ones((4, rank))}
        save_file(halves, tmp_path / name)
    a, b = Lora(tmp_path / "a.safetensors", 0.5), Lora(tmp_path / "b.safetensors")
    backend = FakeBackend()
    with Pipeline(make_bundle(lora_forms=(lora_form(),)), RuntimeOptions(backend=backend)) as pipeline:
        for loras in ([], [a], [b], [a, b], []):
            pipeline.generate("a", loras=loras, num_inference_steps=1)
    assert [what for what, name in backend.log if name == "denoiser" and what != "run"] == ["open", "close"] * 3
    ranks = [arrays[f"{Q}.lora_a"].shape[1] for name, arrays in backend.fed if f"{Q}.lora_a" in arrays]
    assert ranks == [2, 3, 5]
