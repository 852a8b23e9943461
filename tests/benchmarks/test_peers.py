"""The peers do the same work as ours: the same velocity, the same frames, by paths that share no code."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mutoscope
import numpy as np
import pytest
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope_bench.case_model import builtin_checkpoint
from mutoscope_bench.cases import PROMPT, SEED
from mutoscope_bench.difference import difference
from mutoscope_bench.implementation import Implementation, Work, text_shapes
from mutoscope_bench.implementations import PEERS, load_implementation
from mutoscope_bench.measuring import Answer
from mutoscope_bench.picture import red_circle
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_peers.random_models import replace_denoisers
from mutoscope_peers.stable_diffusion_cpp_peer import write_renamed
from PIL import Image
from safetensors.torch import load_file

from tests.bench.two_experts import bundle_of_two, checkpoint_of_two

Make = Any


@pytest.fixture
def work(wan_bundle: Path, wan_checkpoint: Path, tmp_path: Path) -> Make:
    """The work of a kind, tiny, on the small random model."""
    request = {"prompt": PROMPT, "seed": SEED, "height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2}

    def make(kind: str, **changes: Any) -> Work:
        with mutoscope.Pipeline.load(wan_bundle, backend="onnxruntime", precision="fp32") as pipeline:
            plan = pipeline.plan(**request)
        whole = Work(
            kind=kind, bundle=str(wan_bundle), checkpoint=str(wan_checkpoint), plan=plan.to_dict(), request=request,
            text_tokens=6, texts=text_shapes(Bundle.open(wan_bundle, verify=False), 6), threads=2, batch=1,
            result=str(tmp_path / "result.npy"), video=str(tmp_path / "video.mp4"), runtime={},
        )  # fmt: skip
        return replace(whole, **changes)

    return make


def made(implementation: Implementation, work: Work, precision: str = "fp32") -> tuple[np.ndarray, Answer]:
    Path(work.result).unlink(missing_ok=True)
    assert implementation.cannot(work, precision) is None
    answer = implementation.load(work, precision)()
    assert answer["elapsed_s"] > 0
    return np.load(work.result), answer


def output(implementation: Implementation, work: Work, precision: str = "fp32") -> np.ndarray:
    frames, _ = made(implementation, work, precision)
    return frames


@pytest.mark.parametrize(("kind", "most"), [("forward", 1e-5), ("decode", 2e-3), ("clip", 2e-3)])
def test_ours_gives_what_diffusers_gives(work: Make, kind: str, most: float) -> None:
    ours = output(load_implementation("mutoscope onnxruntime"), work(kind))
    theirs = output(load_implementation("diffusers"), work(kind))
    assert ours.shape == theirs.shape
    assert float(np.std(theirs)) > 0.1
    found = difference(ours, theirs).relative_error
    assert found is not None and found < most


def test_from_a_picture_ours_gives_what_diffusers_gives_and_from_another_it_does_not(
    work: Make, tmp_path: Path
) -> None:
    """By the built-in model, which takes one."""
    request = {"prompt": PROMPT, "seed": SEED, "height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 2}
    bundle, pictures = bundle_path(), [tmp_path / "picture.png", tmp_path / "other.png"]
    for file, pixels in zip(pictures, (red_circle(32, 64), 255 - red_circle(32, 64)), strict=True):
        Image.fromarray(pixels).save(file)

    def clip(picture: Path) -> Work:
        asked = request | {"image": str(picture)}
        with mutoscope.Pipeline.load(bundle, backend="onnxruntime", precision="fp32") as pipeline:
            plan = pipeline.plan(**asked)
        return work(
            "clip", bundle=str(bundle), checkpoint=str(builtin_checkpoint()), plan=plan.to_dict(), request=asked
        )

    theirs, answer = made(load_implementation("diffusers"), clip(pictures[0]))
    ours, other = (output(load_implementation("mutoscope onnxruntime"), clip(picture)) for picture in pictures)
    same, another = (difference(each, theirs).relative_error for each in (ours, other))
    assert same is not None and another is not None and same < 2e-3 and another > 0.3

    stages = answer["stages"]
    parts = [stages[stage] for stage in ("text_encoder", "picture_encoder", "denoiser", "decode")]
    assert min(parts) > 0 and "kept_switch" not in stages
    assert sum(parts) == pytest.approx(stages["first_frame"], rel=0.1)
    assert sum(answer["steps"]) == pytest.approx(stages["denoiser"])
    assert stages["first_frame"] + stages["encode"] == pytest.approx(answer["elapsed_s"])
    assert "all frames at once" in answer["notes"]["first_frame"] and "note" not in answer


def test_by_two_experts_ours_gives_what_diffusers_gives(
    work: Make, wan_bundle: Path, wan_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = bundle_of_two(wan_bundle, tmp_path / "two")
    checkpoint = checkpoint_of_two(wan_checkpoint, tmp_path / "checkpoint")
    with mutoscope.Pipeline.load(bundle, backend="onnxruntime", precision="fp32") as pipeline:
        plan = pipeline.plan(**work("experts").request)
    experts = work("experts", bundle=str(bundle), checkpoint=str(checkpoint), plan=plan.to_dict())
    ours = output(load_implementation("mutoscope onnxruntime"), experts)
    theirs, answer = made(load_implementation("diffusers"), experts)
    found = difference(ours, theirs).relative_error
    assert found is not None and found < 2e-3
    assert 0 < answer["stages"]["kept_switch"] < min(answer["steps"])
    assert answer["note"] == "keeps both transformers loaded"


def test_a_forward_is_compared_branch_by_branch(work: Make) -> None:
    velocity = output(load_implementation("mutoscope onnxruntime"), work("forward"))
    assert velocity.shape == (2, *work("forward").plan["latents_shape"])
    assert not np.allclose(velocity[0], velocity[1])


def test_openvino_gives_what_ours_gives(work: Make) -> None:
    pytest.importorskip("openvino")
    ours = output(load_implementation("mutoscope onnxruntime"), work("forward"))
    theirs = output(load_implementation("openvino"), work("forward"))
    found = difference(theirs, ours).relative_error
    assert found is not None and found < 1e-4


@pytest.mark.parametrize("kind", ["clip", "experts", "forward", "decode"])
@pytest.mark.parametrize("name", ["openvino-genai", "stable-diffusion.cpp"])
def test_what_a_peer_cannot_do_it_says(work: Make, name: str, kind: str) -> None:
    peer = load_implementation(name)
    assert all(peer.cannot(work(kind), precision) for precision in peer.variants)


def test_without_a_checkpoint_diffusers_says_what_it_needs(work: Make) -> None:
    assert "--checkpoint" in (load_implementation("diffusers").cannot(work("clip", checkpoint=None), "fp32") or "")


def test_diffusers_refuses_another_schedule_than_its_own(work: Make) -> None:
    euler = work("clip")
    euler = replace(euler, plan=euler.plan | {"scheduler": "euler"}, request=euler.request | {"scheduler": "euler"})
    assert "scheduler" in (load_implementation("diffusers").cannot(euler, "fp32") or "")


@pytest.mark.parametrize(
    "changes",
    [{"flow_shift": 5.0}, {"sigmas": "1,0.5"}, {"cache_interval": 3}],
    ids=lambda changes: next(iter(changes)),
)
def test_diffusers_refuses_steps_that_are_not_its_own(work: Make, changes: dict[str, Any]) -> None:
    changed = work("clip")
    changed = replace(changed, request=changed.request | changes)
    assert next(iter(changes)) in (load_implementation("diffusers").cannot(changed, "fp32") or "")


def test_every_peer_of_the_table_is_there_and_named_so() -> None:
    assert {name: load_implementation(name).name for name in PEERS} == {name: name for name in PEERS}


def test_the_names_for_stable_diffusion_cpp_are_those_that_diffusers_renames_back(tmp_path: Path) -> None:
    """Diffusers reads the authors' files; what it makes of our names must be its own again."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=8, freq_dim=8, text_dim=8, in_channels=4,
        out_channels=4,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=2)
    transformer.save_pretrained(tmp_path / "checkpoint/transformer", max_shard_size="20KB")  # several files
    vae.save_pretrained(tmp_path / "checkpoint/vae")
    write_renamed(tmp_path / "checkpoint")
    for network, file, back in (
        (transformer, "wan-transformer.safetensors", convert_wan_transformer_to_diffusers),
        (vae, "wan-vae.safetensors", convert_wan_vae_to_diffusers),
    ):
        own = network.state_dict()
        returned = back(load_file(tmp_path / file))
        assert set(returned) == set(own)
        assert all(torch_equal(returned[name], own[name]) for name in own)


def torch_equal(one: Any, other: Any) -> bool:
    return bool((one == other).all())


def test_a_larger_denoiser_takes_the_place_of_a_small_one(wan_bundle: Path, tmp_path: Path, work: Make) -> None:
    bundle = Path(shutil.copytree(wan_bundle, tmp_path / "bundle"))
    checkpoint = random_checkpoint(tmp_path / "checkpoint", num_layers=3, vae_config={"num_res_blocks": 0})
    replace_denoisers(bundle, checkpoint)
    Bundle.open(bundle)  # every hash agrees
    larger = work("forward", bundle=str(bundle), checkpoint=str(checkpoint))
    ours = output(load_implementation("mutoscope onnxruntime"), larger)
    found = difference(ours, output(load_implementation("diffusers"), larger)).relative_error
    assert found is not None and found < 1e-5
