"""Files of LoRAs become exactly what is added to each weight, or are refused as a whole with the reason."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from mutoscope import Lora, Pipeline, RequestError, RuntimeOptions, VideoRequest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import Expert, Manifest
from mutoscope.planning.footprints import buffer_bytes, wanted_engine
from mutoscope.planning.loras import SettledLoras, notes_on_loras, settle_loras
from mutoscope.values.loras import LORA, parse_lora
from mutoscope_engines.testing import FakeBackend
from safetensors.numpy import save_file

from tests.bundles import TWO, Q, lora_form

STEM_Q, STEM_TWO = f"transformer.{Q.removesuffix('.weight')}", "diffusion_model.blocks.1.ffn.2"


@pytest.fixture
def opened(make_bundle: Any) -> Bundle:
    bundle: Bundle = make_bundle(lora_forms=(lora_form(),))
    return bundle


@pytest.fixture
def manifest(opened: Bundle) -> Manifest:
    return opened.manifest


def factors(stem: str, rank: int, shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    random, (rows, columns) = np.random.default_rng(seed), shape
    down, up = random.standard_normal((rank, columns), np.float32), random.standard_normal((rows, rank), np.float32)
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}


def file(folder: Path, *tensors: Mapping[str, Any], name: str = "l.safetensors") -> Path:
    save_file({key: np.asarray(value) for each in tensors for key, value in each.items()}, folder / name)
    return folder / name


def settled(manifest: Manifest, *loras: Lora, precision: str = "fp32") -> SettledLoras:
    return settle_loras(VideoRequest(prompt="a", loras=loras), manifest, precision)


def added(found: SettledLoras, parameter: str) -> np.ndarray:
    """What is added to a weight `[in, out]`."""
    feeds = found.feeds("denoiser")
    a, b = (feeds[f"{parameter}.lora_{half}"].astype(np.float64) for half in "ab")
    result: np.ndarray = a @ b
    return result


def test_strength_alpha_and_rank_are_in_what_is_added(manifest: Manifest, tmp_path: Path) -> None:
    halves = factors(STEM_Q, 2, (4, 6))
    found = settled(manifest, Lora(file(tmp_path, halves, {f"{STEM_Q}.alpha": np.float32(3)}), -0.5))
    down, up = halves.values()
    assert np.allclose(added(found, Q), -0.5 * 3 / 2 * (up @ down).T, rtol=1e-5)
    assert not added(found, TWO).any()
    assert found.lengths == {"R": 2}


def test_a_file_that_has_gone_or_changed_is_refused_in_words_when_a_plan_becomes_a_request(
    opened: Bundle, tmp_path: Path
) -> None:
    path = file(tmp_path, factors(STEM_Q, 2, (4, 6)))
    with Pipeline(opened, RuntimeOptions(backend=FakeBackend())) as pipeline:
        plan = pipeline.plan(prompt="a", loras=[Lora(path, 0.5)])
    assert plan.to_request(loras=[Lora(path, 0.5)]).loras == (Lora(path, 0.5),)
    file(tmp_path, factors(STEM_Q, 2, (4, 6), seed=1))
    with pytest.raises(RequestError, match=r"loras must be those of the plan, l\.safetensors:0\.5; got"):
        plan.to_request(loras=[Lora(path, 0.5)])
    path.unlink()
    with pytest.raises(RequestError, match="loras has a file that cannot be read"):
        plan.to_request(loras=[Lora(path, 0.5)])


def test_a_file_that_is_cut_short_after_the_plan_is_refused_in_words(manifest: Manifest, tmp_path: Path) -> None:
    path = file(tmp_path, factors(STEM_Q, 2, (4, 6)))
    found = settled(manifest, Lora(path))
    os.truncate(path, 8)
    said = r"l\.safetensors was changed since the video was planned; ask for it again"
    with pytest.raises(RequestError, match=said):
        found.feeds("denoiser")
    path.unlink()
    with pytest.raises(RequestError, match=said):
        found.feeds("denoiser")


def test_the_same_file_is_hashed_once_for_several_plans(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now, whole, hashed = file(tmp_path, factors(STEM_Q, 2, (4, 6))), time.time_ns(), hashlib.file_digest, []
    loras = [Lora(path, 0.5)]
    with Pipeline(opened, RuntimeOptions(backend=FakeBackend())) as pipeline:
        monkeypatch.setattr(time, "time_ns", lambda: now + 10_000_000_000)
        monkeypatch.setattr(hashlib, "file_digest", lambda read, name: hashed.append(read.name) or whole(read, name))
        plans = [pipeline.plan(prompt="a", loras=loras) for _ in range(2)]
    plans[0].to_request(loras=loras)
    assert hashed == [str(path)]
    assert {plan.loras[0].sha256 for plan in plans} == {hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("strength", [0.123456789, 1 / 3, 1e-7, 12345678.9, 1, -0.0])
def test_a_strength_in_text_is_the_same_number_again(strength: float) -> None:
    read = parse_lora(LORA.write(Lora("no such file", strength)))
    assert read == Lora("no such file", strength)


def test_several_stand_beside_each_other_and_what_is_shorter_is_filled_up_with_zeros(
    manifest: Manifest, tmp_path: Path
) -> None:
    first, second = factors(STEM_Q, 2, (4, 6)), factors(STEM_Q, 3, (4, 6), seed=1)
    other = factors(STEM_TWO, 1, (3, 5), seed=2)
    paths = file(tmp_path, first, name="a.safetensors"), file(tmp_path, second, other, name="b.sft")
    found = settled(manifest, Lora(paths[0]), Lora(paths[1], 0.25))
    sums = sum(strength * (up @ down).T for strength, (down, up) in ((1, first.values()), (0.25, second.values())))
    assert np.allclose(added(found, Q), sums, rtol=1e-5, atol=1e-6)
    down, up = other.values()
    assert np.allclose(added(found, TWO), 0.25 * (up @ down).T, rtol=1e-5, atol=1e-6)
    assert {value.shape for value in found.feeds("denoiser").values()} == {(6, 5), (5, 4), (5, 5), (5, 3)}
    assert [(lora.file, lora.rank) for lora in found.plan] == [("a.safetensors", 2), ("b.sft", 3)]


def test_in_float16_small_factors_do_not_become_zero(make_bundle: Any, tmp_path: Path) -> None:
    precision = "bf16"
    manifest = make_bundle(lora_forms=(lora_form(precision=precision),)).manifest
    down, up = np.full((1, 6), 1000, np.float32), np.full((4, 1), 1e-8, np.float32)
    path = file(tmp_path, {f"{STEM_Q}.lora_A.weight": down, f"{STEM_Q}.lora_B.weight": up})
    found = settled(manifest, Lora(path), precision=precision)
    assert {str(value.dtype) for value in found.feeds("denoiser").values()} == {"float16"}
    assert np.allclose(added(found, Q), 1e-5, rtol=2e-3)


def test_strength_zero_adds_nothing(manifest: Manifest, tmp_path: Path) -> None:
    assert not added(settled(manifest, Lora(file(tmp_path, factors(STEM_Q, 2, (4, 6))), 0)), Q).any()


def test_without_loras_nothing_is_fed(manifest: Manifest) -> None:
    found = settled(manifest)
    assert (found.plan, found.lengths, found.feeds("denoiser")) == ((), {}, {})


def test_memory_counts_a_and_b_and_an_engine_serves_every_rank(opened: Bundle) -> None:
    plain, changed = (opened.manifest.graphs_of("denoiser", "fp32", with_loras=loras) for loras in (False, True))
    symbols = {"B": 2, "L": 3, "F": 1, "h": 2, "w": 2, "K": 2, "R": 7}
    numbers = 7 * (6 + 4 + 5 + 3)
    assert buffer_bytes(changed, symbols) - buffer_bytes(plain, symbols) == 4 * numbers
    assert not [name for name in wanted_engine(opened, changed[0], symbols).shapes if "lora" in name]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (factors(STEM_Q, 2, (4, 7)), "0 of its 2 tensors do, and of the others 2 have other sizes than the network"),
        (factors(STEM_Q.replace("0", "40"), 2, (4, 6)), "2 are for blocks from 2 on, and this network has 2"),
        (factors("diffusion_model.blocks.0.cross_attn.k_img", 2, (4, 6)), "2 are for layers that read a picture"),
        ({f"{STEM_Q}.dora_scale": np.ones(4)}, "1 are of another method than LoRA, such as DoRA"),
        (
            factors(STEM_Q, 2, (4, 6)) | {"diffusion_model.blocks.0.self_attn.q.diff_b": np.ones(4)},
            "of its 2 changes 1 change biases, norms, modulation or whole weights",
        ),
        (factors("diffusion_model.head.head", 2, (3, 4)), "1 change layers that LoRAs cannot change in fp32"),
        (factors(STEM_Q, 513, (4, 6)), "the LoRAs have a rank of 513 together, and at most 512 is allowed"),
    ],
    ids=["size", "blocks", "pictures", "DoRA", "bias", "no input", "rank"],
)
def test_what_does_not_fit_as_a_whole_is_refused(
    manifest: Manifest, tmp_path: Path, tensors: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        settled(manifest, Lora(file(tmp_path, tensors)))
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_file_with_values_that_are_no_numbers_is_refused(manifest: Manifest, tmp_path: Path, value: float) -> None:
    tensors = factors(STEM_Q, 2, (4, 6))
    tensors[f"{STEM_Q}.lora_A.weight"][0, 0] = value
    found = settled(manifest, Lora(file(tmp_path, tensors)))
    with pytest.raises(RequestError, match=r"l\.safetensors changes blocks\.0\.attn1\.to_q\.weight by NaN, infinity"):
        found.feeds("denoiser")


@pytest.mark.parametrize("given", ["a.safetensors", Lora("a"), ["a.safetensors"], 3])
def test_anything_but_a_sequence_of_loras_is_refused(manifest: Manifest, given: Any) -> None:
    with pytest.raises(RequestError, match=r"loras must be a sequence of Lora\(path, strength\), such as loras=\(Lora"):
        settle_loras(VideoRequest(prompt="a", loras=given), manifest, "fp32")


def test_a_strength_that_is_no_number_and_a_file_that_is_not_there_are_refused(manifest: Manifest) -> None:
    with pytest.raises(RequestError, match="the strength of a must be a number from -1000 to 1000; got nan"):
        settled(manifest, Lora("a", float("nan")))
    with pytest.raises(RequestError, match=r"nowhere\.safetensors cannot be read: .*; name the file of a LoRA"):
        settled(manifest, Lora("nowhere.safetensors"))
    with pytest.raises(RequestError, match=r"'no\\x00pe' is not a path: .*; name the file of a LoRA"):
        settled(manifest, Lora("no\0pe"))


def test_a_bundle_without_the_inputs_says_how_to_export_one(make_bundle: Any, tmp_path: Path) -> None:
    lora = Lora(file(tmp_path, factors(STEM_Q, 2, (4, 6))))
    said = "takes no LoRAs in fp32; export the checkpoint again in fp32 with lora_inputs: mutoscope export CHECKPOINT"
    with pytest.raises(RequestError, match=said):
        settled(make_bundle().manifest, lora)
    with pytest.raises(RequestError, match="takes no LoRAs in fp32; choose the precision bf16, or export"):
        settled(make_bundle(lora_forms=(lora_form(precision="bf16"),)).manifest, lora)


def test_each_of_two_denoisers_has_its_own(manifest: Manifest, tmp_path: Path) -> None:
    lora = Lora(file(tmp_path, factors(STEM_Q, 2, (4, 6))))
    with pytest.raises(RequestError, match="this model has one denoiser, and loras_2 is for a second; leave it out"):
        settle_loras(VideoRequest(prompt="a", loras_2=[lora]), manifest, "fp32")
    experts = (Expert(above=900), Expert(role="denoiser_low"))
    two = msgspec.structs.replace(manifest, experts=experts, lora_forms=(lora_form(), lora_form("denoiser_low")))
    found = settle_loras(VideoRequest(prompt="a", loras_2=[lora]), two, "fp32")
    assert found.feeds("denoiser") == {}
    assert len(found.feeds("denoiser_low")) == 4
    assert [planned.role for planned in found.plan] == ["denoiser_low"]
    said = "the LoRAs of the denoiser_low change nothing: all steps of this video are another denoiser's"
    assert list(notes_on_loras(found, {"denoiser": 4})) == [said]
    assert list(notes_on_loras(found, {"denoiser": 4, "denoiser_low": 2})) == []
