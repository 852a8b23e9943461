"""A clip, a mask and reference pictures reach the encoder and the denoiser as `WanVACEPipeline` prepares them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from diffusers.video_processor import VideoProcessor
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ControlConditioning
from mutoscope.bundle.manifest import Preview
from mutoscope.errors import BundleError, RequestError
from mutoscope.pictures import letterboxed
from mutoscope.pipeline import EncodedConditions, Pipeline
from mutoscope.request import RuntimeOptions
from mutoscope_engines.testing import FakeBackend
from PIL import Image

from tests.bundles import Ends, graphs, interfaces, tensors
from tests.runtime.conditions.encoding import counting
from tests.runtime.conditions.test_image_clip import ends_with_clip, fed
from tests.runtime.test_clips import lossless

MakeBundle = Callable[..., Bundle]
H, W, T = 32, 48, 9
ROUNDED_PLACES = 5e-6  # PyTorch multiplies and adds in one step where it computes between which pixels a new one lies
SIZED: dict[str, Any] = {"prompt": "a red circle", "height": H, "width": W, "num_frames": T}
RANDOM = np.random.default_rng(0)
VIDEO = RANDOM.integers(0, 256, (T, 2 * H, 2 * W, 3), np.uint8)
GREYS = np.repeat(RANDOM.integers(0, 256, (T, 2 * H, 2 * W, 1), np.uint8), 3, axis=3)
PICTURES = tuple(RANDOM.integers(0, 256, (*size, 3), np.uint8) for size in ((67, 41), (30, 90)))
CONTROL: dict[str, Any] = {
    "name": "video", "mask": "mask", "references": "reference_images", "scale": "conditioning_scale",
    "role": "vae_encoder_first", "following": "vae_encoder_next", "feeds": {"condition": "control"},
    "scale_input": "control_scale", "layers": 3,
}  # fmt: skip


def ends_with_control() -> dict[str, Ends]:
    ends = ends_with_clip()
    inputs, outputs = interfaces()["denoiser"]
    ends["denoiser"] = (inputs + tensors(control=(72, "F", "h", "w"), control_scale=(3,)), outputs)
    return ends


@pytest.fixture
def with_control(make_bundle: MakeBundle) -> MakeBundle:
    """A bundle that follows a clip; keywords change what its manifest says of it."""

    def make(**changes: Any) -> Bundle:
        control = ControlConditioning(**(CONTROL | changes))
        preview = Preview(weights=((1.0, 1.0, 1.0),) * 4, bias=(0.0, 0.0, 0.0))
        conditionings = (*make_bundle().manifest.texts, control)
        return make_bundle(conditionings=conditionings, graphs=graphs(ends_with_control()), preview=preview)

    return make


@pytest.fixture
def backend() -> FakeBackend:
    return counting()


@pytest.fixture
def pipeline(with_control: MakeBundle, backend: FakeBackend) -> Any:
    with Pipeline(with_control(), RuntimeOptions(backend=backend)) as made:
        yield made


def diffusers_prepares(**given: Any) -> tuple[Any, Any, Any]:
    """Clip, mask and references in -1..1 and 0..1, and the channels of the mask, by the pipeline's own methods."""
    network = SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2)))
    stub: Any = SimpleNamespace(
        video_processor=VideoProcessor(vae_scale_factor=8), transformer=network, vae_scale_factor_spatial=8,
        vae_scale_factor_temporal=4,
    )  # fmt: skip
    pictures = {name: [Image.fromarray(each) for each in values] for name, values in given.items()}
    prepared = WanVACEPipeline.preprocess_conditions(
        stub, **pictures, height=H, width=W, num_frames=T, dtype=torch.float32, device=torch.device("cpu")
    )
    return *prepared, WanVACEPipeline.prepare_masks(stub, *prepared[1:])[0].numpy()


def encoded_frames(backend: FakeBackend) -> list[Any]:
    """What the encoder saw, call after call, in -1..1."""
    feeds = [feeds for name, feeds in backend.fed if name.startswith("vae_encoder")]
    return [each["frames"] / 255 * 2 - 1 for each in feeds]


def clips_of(frames: list[Any]) -> tuple[Any, Any, list[Any]]:
    """Three calls for each of two clips, and then the references."""
    return np.concatenate(frames[:3]), np.concatenate(frames[3:6]), frames[6:]


@pytest.mark.parametrize("references", [(), PICTURES[:1], PICTURES])
@pytest.mark.parametrize("mask", [None, GREYS])
def test_encoder_and_denoiser_see_what_diffusers_prepares(
    pipeline: Pipeline, backend: FakeBackend, mask: Any, references: Any
) -> None:
    given = {"video": VIDEO} | ({} if mask is None else {"mask": mask})
    given |= {"reference_images": references} if references else {}
    video, masks, pictures, channels = diffusers_prepares(**given)
    pipeline.generate(**SIZED, **given)
    kept, made, seen = clips_of(encoded_frames(backend))
    made_anew = (masks > 0.5).float()
    for found, expected in ((kept, video * (1 - made_anew)), (made, video * made_anew)):
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 3, 0), atol=1e-6)
    for found, expected in zip(seen, pictures[0], strict=True):
        np.testing.assert_allclose(found[0], expected.permute(1, 2, 0), atol=ROUNDED_PLACES)
    control = fed(backend, "denoiser")[0]["control"]
    np.testing.assert_array_equal(control[8:], channels)
    means = [[each[start:stop].mean() for start, stop in ((0, 1), (1, 5), (5, 9))] for each in (kept, made)]
    latents = control[:8, :, 0, 0] / 255 * 2 - 1  # the mean of what the fake encoder saw
    count = len(references)
    np.testing.assert_allclose(latents[:4, count:], [means[0]] * 4, atol=1e-5)
    np.testing.assert_allclose(latents[4:, count:], [means[1]] * 4, atol=1e-5)
    np.testing.assert_allclose(latents[0, :count], [each.mean() for each in reversed(seen)], atol=1e-5)
    assert not control[4:, :count].any()


def test_without_a_clip_the_control_is_grey_and_all_is_made_anew(pipeline: Pipeline, backend: FakeBackend) -> None:
    pipeline.generate(**SIZED)
    (feeds, *_) = fed(backend, "denoiser")
    assert (feeds["control"][:8] == 127.5).all() and (feeds["control"][8:] == 1).all()
    assert feeds["control_scale"].tolist() == [1, 1, 1]
    assert len(encoded_frames(backend)) == 3  # once is enough


def test_latents_of_references_are_not_decoded(pipeline: Pipeline, backend: FakeBackend) -> None:
    shown: list[Any] = []
    pipeline.generate(**SIZED, reference_images=PICTURES, on_step=lambda event: shown.append(event.preview()))
    assert fed(backend, "denoiser")[0]["latents"].shape[1] == 3 + 2
    assert len(fed(backend, "vae_features_first")) + len(fed(backend, "vae_features_next")) == 3
    assert {len(frames) for frames in shown} == {3}


def test_memory_and_engines_are_planned_with_the_latents_of_references(pipeline: Pipeline) -> None:
    alone, with_two = (pipeline.plan(**SIZED, reference_images=given) for given in (None, PICTURES))
    more = [plan.memory.options["denoise"].buffer_bytes for plan in (alone, with_two)]
    assert [plan.geometry.latents_shape[1] for plan in (alone, with_two)] == [3, 5]
    assert more[1] > more[0] * 1.4  # nearly all of it is latents


def test_one_picture_masks_all_frames(pipeline: Pipeline, backend: FakeBackend, tmp_path: Path) -> None:
    Image.fromarray(GREYS[0]).save(tmp_path / "mask.png")
    for mask in (GREYS[0], np.repeat(GREYS[:1], T, axis=0), tmp_path / "mask.png"):
        pipeline.generate(**SIZED, video=VIDEO, mask=mask)
    first, *others = [feeds["control"] for feeds in fed(backend, "denoiser")]
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
    ("scale", "expected"), [(0.5, [0.5] * 3), (np.float32(0.5), [0.5] * 3), ([1, 0, 2], [1, 0, 2])]
)
def test_the_scale_is_for_all_layers_or_for_each(
    pipeline: Pipeline, backend: FakeBackend, scale: Any, expected: list[float]
) -> None:
    plan = pipeline.generate(**SIZED, conditioning_scale=scale).plan
    assert fed(backend, "denoiser")[0]["control_scale"].tolist() == expected
    assert fed(backend, "denoiser")[0]["control_scale"].dtype == np.float32
    assert plan.from_dict(plan.to_dict()).to_request().conditioning_scale == plan.to_request().conditioning_scale


def test_the_plan_makes_the_same_request_again_with_the_same_files_alone(pipeline: Pipeline) -> None:
    files = {"video": VIDEO, "mask": GREYS, "reference_images": PICTURES}
    plan = pipeline.plan(**SIZED, **files)
    assert plan.geometry.latents_shape[1] == 5
    assert plan.header.has_footage
    assert not pipeline.plan(**SIZED, video=VIDEO).header.has_footage  # of which nothing is kept without a mask
    again = plan.to_request(**files)
    assert pipeline.plan(again).to_dict() == plan.to_dict()
    for name, another in (("video", 255 - VIDEO), ("mask", GREYS[0]), ("reference_images", PICTURES[::-1])):
        with pytest.raises(RequestError, match=f"{name} is another than the plan has, which is"):
            plan.to_request(**files | {name: another})
        with pytest.raises(RequestError, match=f"{name} is missing: the plan has [0-9]+x[0-9]+.* sha256:"):
            plan.to_request(**files | {name: None})


def test_size_and_length_follow_from_the_clip(pipeline: Pipeline) -> None:
    assert pipeline.bundle.manifest.defaults.num_frames == 9
    plan = pipeline.plan("a red circle", video=VIDEO[:6])
    assert plan.geometry.num_frames == 5
    assert plan.geometry.width / plan.geometry.height == pytest.approx(W / H, rel=0.3)
    assert plan.notes == ("of video the first 5 frames are used, and what follows is left out",)


def test_another_mask_is_another_control(pipeline: Pipeline, backend: FakeBackend) -> None:
    kept = EncodedConditions()
    for mask in (GREYS, GREYS, 255 - GREYS, None):
        for _ in pipeline.stream(**SIZED, video=VIDEO, mask=mask, encoded=kept):
            pass
    assert backend.log.count(("run", "vae_encoder_first")) == 3 * 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mask": GREYS}, "mask says which parts of video are made anew; give video, too"),
        ({"video": VIDEO, "mask": GREYS[:, :H]}, "mask has 96x32 pixels, and video 96x64; give a mask of the same"),
        ({"video": VIDEO, "mask": GREYS[:5]}, "mask has 5 frames, and video 9; give a mask with as many frames, or"),
        ({"video": VIDEO, "mask": np.repeat(GREYS, 2, 0)}, "mask has more than 9 frames, and video 9"),
        ({"video": VIDEO[:5]}, "video has 5 frames, and the video that is made of it has 9; .* or num_frames=5"),
        ({"video": VIDEO, "mask": b"neither"}, "mask is not a video that can be read: 7 bytes"),
        ({"reference_images": PICTURES[0]}, r"reference_images must be a tuple of pictures, such as"),
        ({"reference_images": [np.zeros((7, 90, 3), np.uint8)]}, "reference_images has a picture of 90x7 pixels"),
        ({"reference_images": PICTURES * 600}, "reference_images has 1200 pictures, .* this model can take"),
        ({"conditioning_scale": [1.0]}, "conditioning_scale has 1 numbers; .* each of the 3 layers"),
        ({"conditioning_scale": -1}, "conditioning_scale must be a number from 0 to 100; got -1"),
        ({"conditioning_scale": "1"}, "conditioning_scale must be a sequence of numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(pipeline: Pipeline, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline.plan(**SIZED, **asked)


def test_too_many_references_and_sizes_of_no_video_are_refused_before_a_file_is_looked_for(pipeline: Pipeline) -> None:
    nowhere: dict[str, Any] = {"prompt": "a", "reference_images": ["nowhere.png"], "mask": "nowhere.png"}
    for asked, message in (
        ({"reference_images": ["nowhere.png"] * 1200}, "reference_images has 1200 pictures"),
        ({"reference_images": ["nowhere.png"] * 1200, "video": "nowhere.mp4"}, "reference_images has 1200 pictures"),
        ({"height": H + 1}, "height must be"),
        ({"num_frames": T + 1}, "num_frames must be"),
        ({}, "mask is not there"),
    ):
        with pytest.raises(RequestError, match=message):
            pipeline.plan(**nowhere | asked)


def test_a_mask_of_another_size_is_refused_before_the_frames_are_decoded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, mask = lossless(VIDEO, 10), lossless(GREYS[:, :H], 10)

    def decoded(*_: Any) -> Any:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr("mutoscope.clips.every_frame", decoded)
    with pytest.raises(RequestError, match="mask has 96x32 pixels, and video 96x64; give a mask of the same size"):
        pipeline.plan(**SIZED, video=video, mask=mask, fps=10)


def test_transparent_parts_of_a_mask_are_made_anew_and_a_note_says_that_they_are_white(
    pipeline: Pipeline, backend: FakeBackend, tmp_path: Path
) -> None:
    black = np.zeros((2 * H, 2 * W, 4), np.uint8)
    black[:H, :, 3] = 255
    Image.fromarray(black).save(tmp_path / "mask.png")
    plan = pipeline.generate(**SIZED, video=VIDEO, mask=tmp_path / "mask.png").plan
    assert any("mask is transparent in parts, which become white" in note for note in plan.notes)
    channels = fed(backend, "denoiser")[0]["control"][8:]
    assert not channels[:, :, 0].any() and (channels[:, :, -1] == 1).all()


@pytest.mark.parametrize("name", ["mask", "reference_images", "conditioning_scale"])
def test_a_model_without_control_says_so(make_bundle: MakeBundle, name: str) -> None:
    message = f"{name} is not a parameter of this model, .* such as Wan 2.1 VACE"
    options = RuntimeOptions(backend=FakeBackend())
    with Pipeline(make_bundle(), options) as pipeline, pytest.raises(RequestError, match=message):
        pipeline.plan(**SIZED, **{name: GREYS})


def test_a_manifest_whose_control_does_not_fit_its_graphs_is_refused(with_control: MakeBundle) -> None:
    with pytest.raises(BundleError, match=r"the input control_scale as float32 \[3\]; it must be float32 \[2\]"):
        with_control(layers=2)
    with pytest.raises(BundleError, match="the conditioning video has the encoder 'denoiser' for its first call"):
        with_control(role="denoiser")


@pytest.mark.parametrize("shape", [(8, 8), (67, 41), (30, 901), (480, 832), (33, 16)])
def test_a_reference_is_letterboxed_as_diffusers_does(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    _, _, ((expected,),), _ = diffusers_prepares(reference_images=[picture])
    found = letterboxed(picture, H, W, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found / 255 * 2 - 1, expected.permute(1, 2, 0), atol=ROUNDED_PLACES)
