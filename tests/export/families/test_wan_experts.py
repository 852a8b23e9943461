"""Wan checkpoints with two transformers: what is said of them, what is refused, and how they are calibrated."""

from __future__ import annotations

import shutil
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from mutoscope.bundle.manifest import Expert, Manifest
from mutoscope_export.checkpoint.checkpoint import Checkpoint
from mutoscope_export.declaration import declared_manifest
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan.random_checkpoint import MAX_SEQUENCE_LENGTH, add_expert, random_checkpoint
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_export.quantization.quantize import Quantization, quantize
from torch import nn

from tests.export.spoiling import edit

TINY_VAE = {
    "num_res_blocks": 0, "dim_mult": [1, 2], "temperal_downsample": [True], "scale_factor_spatial": 2,
    "scale_factor_temporal": 2,
}  # fmt: skip
PROMPTS = ["a red circle", "the blue square moving"]
OPTIONS = ExportOptions(calibration_prompts=PROMPTS, calibration_size=(16, 32, 5), calibration_steps=6)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose second transformer takes over below 0.875 of the timesteps. Not to be written to."""
    folder = tmp_path_factory.mktemp("experts") / "two"
    return add_expert(random_checkpoint(folder, num_layers=3, vae_config=TINY_VAE), 0.875)


@pytest.fixture
def copy_of_two(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "two"))


def manifest_of(checkpoint: Path) -> Manifest:
    return declared_manifest(open_checkpoint(checkpoint))


def test_it_is_two_denoisers_run_as_the_authors_of_wan_2_2_run_them(two: Path) -> None:
    manifest = manifest_of(two)
    assert manifest.experts == (
        Expert(role="denoiser", above=875.0),
        Expert(role="denoiser_low", above=0.0, guidance_scale=3.0),
    )
    defaults = manifest.defaults
    assert (defaults.guidance_scale, defaults.num_inference_steps, defaults.flow_shift) == (4.0, 40, 12.0)
    assert (defaults.height, defaults.width, defaults.num_frames, defaults.fps) == (480, 832, 81, 16)
    assert manifest.scheduler["flow_shift"] == 3.0  # as the file has it


def test_a_shift_that_somebody_chose_is_kept(copy_of_two: Path) -> None:
    edit(copy_of_two / "scheduler" / "scheduler_config.json", lambda config: config.update(flow_shift=5.0))
    manifest = manifest_of(copy_of_two)
    assert (manifest.defaults.flow_shift, manifest.scheduler["flow_shift"]) == (None, 5.0)


def test_guidance_that_a_checkpoint_asks_for_is_that_of_both(copy_of_two: Path) -> None:
    (copy_of_two / "mutoscope.json").write_text('{"defaults": {"guidance_scale": 6.0, "flow_shift": 8.0}}')
    manifest = manifest_of(copy_of_two)
    assert [expert.guidance_scale for expert in manifest.experts] == [None, None]
    assert (manifest.defaults.guidance_scale, manifest.defaults.flow_shift) == (6.0, 8.0)


Change = Callable[[dict[str, Any]], Any]
REFUSED: dict[str, tuple[str, Change, str]] = {
    "no boundary": (
        "model_index.json", lambda c: c.update(boundary_ratio=None),
        "boundary_ratio is None, and there are two transformers; it must be a number between 0 and 1",
    ),
    "a boundary that no timestep is below": (
        "model_index.json", lambda c: c.update(boundary_ratio=0), "boundary_ratio is 0, and there are two",
    ),
    "a boundary that is no number": (
        "model_index.json", lambda c: c.update(boundary_ratio=True), "boundary_ratio is True, and there are two",
    ),
    "no second transformer": (
        "model_index.json", lambda c: c.update(transformer_2=[None, None]),
        r"boundary_ratio is 0.875 and transformer_2 is \[None, None\] in a WanPipeline; supported is .* that has both",
    ),
    "another pipeline": (
        "model_index.json", lambda c: c.update(_class_name="WanDMDPipeline"), "in a WanDMDPipeline; supported is",
    ),
    "another class": (
        "model_index.json", lambda c: c.update(transformer_2=["diffusers", "WanVACETransformer3DModel"]),
        "the transformer_2 of two is .*; supported: none, diffusers.WanTransformer3DModel",
    ),
    "another size of patches": (
        "transformer_2/config.json", lambda c: c.update(patch_size=[1, 1, 2]),
        r"patch_size of transformer is \[1, 2, 2\], of transformer_2 \[1, 1, 2\]; they must be equal",
    ),
    "image to video": (
        "transformer_2/config.json", lambda c: c.update(image_dim=8), "not plain text-to-video",
    ),
    "layers that the weights lack": (
        "transformer_2/config.json", lambda c: c.update(num_layers=4), "transformer_2 lacks 27 weights",
    ),
    "weights that the layers lack": (
        "transformer_2/config.json", lambda c: c.update(num_layers=2), "transformer_2 has weights that its class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_two_transformers_that_no_pipeline_runs_so_are_refused(copy_of_two: Path, case: str) -> None:
    file, change, message = REFUSED[case]
    edit(copy_of_two / file, change)
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy_of_two)


@pytest.fixture(scope="module")
def calibrated(two: Path) -> tuple[Quantization, list[str]]:
    """Each expert calibrated; and what was loaded, with what of it was in memory at that time."""
    loaded: dict[str, weakref.ref[nn.Module]] = {}
    log = []

    def load(checkpoint: Checkpoint, component: str) -> nn.Module:
        log.append(" beside ".join([component, *(name for name, network in loaded.items() if network() is not None)]))
        network = plain(checkpoint, component)
        loaded[component] = weakref.ref(network)
        return network

    plain, opened = Checkpoint.load, open_checkpoint(two)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "load", load)
        found = quantize(opened, declared_manifest(opened), ["fp8"], OPTIONS, lambda stage: None)
    return found, log


def test_one_expert_is_in_memory_at_a_time(calibrated: tuple[Quantization, list[str]]) -> None:
    _, log = calibrated
    assert log == ["text_encoder", "transformer", "transformer_2"]


def test_each_expert_is_calibrated_on_its_own_steps_of_whole_videos(
    two: Path, calibrated: tuple[Quantization, list[str]]
) -> None:
    """The largest value that each layer read, and the latents of the recorded steps, of runs with both in memory."""
    found, _ = calibrated
    pipeline = WanPipeline.from_pretrained(two)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.register_to_config(flow_shift=12.0)
    largest: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    steps: dict[str, list[float]] = defaultdict(list)
    for role, network in (("denoiser", pipeline.transformer), ("denoiser_low", pipeline.transformer_2)):
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear):

                def see(layer: Any, given: Any, of_role: dict[str, float] = largest[role], name: str = name) -> None:
                    of_role[name] = max(of_role[name], float(given[0].abs().max()))

                layer.register_forward_pre_hook(see)
        network.register_forward_pre_hook(
            lambda module, given, named, role=role: steps[role].append(float(named["hidden_states"].sum())),
            with_kwargs=True,
        )
    for seed, prompt in enumerate(PROMPTS):
        pipeline(
            prompt, "", 16, 32, 5, 6, 4.0, 3.0, generator=torch.Generator().manual_seed(seed), output_type="latent",
            max_sequence_length=MAX_SEQUENCE_LENGTH,
        )  # fmt: skip
    for role, of_role in largest.items():
        report = found.reports[f"fp8 of {role}"]["largest"]["linears"]
        assert report and report == pytest.approx({name: of_role[name] for name in report}, rel=1e-5)
        sums = [float(recording.inputs["latents"].sum()) for recording in found.recordings[role]]
        first = steps[role][: len(steps[role]) // 2 : 2]  # of the first prompt, once a step
        assert sums == pytest.approx([first[len(first) * sixth // 6] for sixth in (1, 3, 5)], rel=1e-4)
