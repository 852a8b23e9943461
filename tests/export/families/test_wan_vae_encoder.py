"""The encoder chunk by chunk, as torch modules and as written graphs, against the whole-clip encode of Diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor
from mutoscope_engines.symbols import sized
from mutoscope_export.families.wan import vae as wan_vae
from mutoscope_export.families.wan.vae_encoder import EncoderChunk, PictureEncoder
from mutoscope_export.graphs.trace import dynamic_shapes, trace, write_graph
from mutoscope_export.graphs.weight_files import WeightFolder
from mutoscope_export.passes.convolve_over_time import convolve_over_time
from mutoscope_export.passes.fewer_products_over_time import fewer_products_over_time
from numpy.typing import NDArray
from PIL import Image

from tests.export.families.test_wan_vae import CONFIGS, WAN_22, random_vae

Levels = NDArray[np.uint8]


def clip_of(vae: AutoencoderKLWan, chunks: int, rows: int = 3, columns: int = 4) -> list[Levels]:
    """Random frames u8 `[n, H, W, 3]`: the first, and then `chunks` times as many as one latent frame has."""
    _, _, shape = EncoderChunk.symbolic_input(vae, first=False)
    following, *size = sized(shape, {"h": rows, "w": columns})
    draw = np.random.default_rng(rows).integers
    return [draw(0, 256, (count, *size), np.uint8) for count in (1, *[following] * chunks)]


def expected_condition(vae: AutoencoderKLWan, clip: Sequence[Levels]) -> NDArray[np.float32]:
    """As `WanImageToVideoPipeline` encodes: f32 `[C, F, h, w]`."""
    pictures = [Image.fromarray(frame) for frames in clip for frame in frames]
    frames = VideoProcessor(vae_scale_factor=1).preprocess_video(pictures)
    mean = torch.tensor(vae.config.latents_mean).view(-1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(-1, 1, 1, 1)
    with torch.no_grad():
        return ((vae.encode(frames).latent_dist.mode()[0] - mean) / std).numpy()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_chunks_with_caches_are_the_whole_clip_and_a_picture_its_first_frame(config: dict[str, object]) -> None:
    vae = random_vae(**config)
    clip = clip_of(vae, 2 if 2 ** sum(vae.config.temperal_downsample) > 1 else 4)
    expected = expected_condition(vae, clip)
    first, following = (EncoderChunk(vae, first=first) for first in (True, False))
    made, caches = [], ()
    with torch.no_grad():
        for index, frames in enumerate(clip):
            chunk, *caches = (following if index else first)(torch.from_numpy(frames).float(), *caches)
            made.append(chunk)
        alone = PictureEncoder(vae, first=True)(torch.from_numpy(clip[0]).float())
    assert expected.std() > 0.3
    np.testing.assert_allclose(torch.cat(made, dim=1).numpy(), expected, rtol=0, atol=2e-5)
    assert len(alone) == 1 and len(caches) > 1
    np.testing.assert_allclose(alone[0].numpy(), expected[:, :1], rtol=0, atol=2e-5)


def test_mid_grey_is_what_the_reference_puts_where_nothing_is_given() -> None:
    vae = random_vae(dim_mult=[1, 2], temperal_downsample=[True])
    with torch.no_grad():
        grey = PictureEncoder(vae, first=True)(torch.full((1, 8, 8, 3), 127.5))[0]
        zeros = vae.encode(torch.zeros(1, 3, 1, 8, 8)).latent_dist.mode()[0]
    mean, std = (torch.tensor(each).view(-1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(grey, (zeros - mean) / std)


def test_written_graphs_give_the_latents_of_a_clip_at_another_size_with_the_passes_of_every_precision(
    tmp_path: Path,
) -> None:
    vae = random_vae(**WAN_22, dim_mult=[1, 2, 2], temperal_downsample=[True, True])
    clip = clip_of(vae, 2, 5, 3)
    expected = expected_condition(vae, clip)
    for name, first in (("first", True), ("next", False)):
        inputs = wan_vae.symbolic_inputs(vae, EncoderChunk, first=first)
        outputs = wan_vae.symbolic_outputs(vae, EncoderChunk, first=first)
        traced = trace(
            EncoderChunk(vae, first=first),
            wan_vae.example_inputs(vae, EncoderChunk, first=first),
            dynamic_shapes(inputs),
            [output for output, _, _ in outputs],
        )
        for change in (fewer_products_over_time, convolve_over_time):
            write_graph(traced, WeightFolder(tmp_path / change.__name__ / name), passes=(change,))
    for change in (fewer_products_over_time, convolve_over_time):
        made = run_graphs(tmp_path / change.__name__, clip)
        np.testing.assert_allclose(made, expected, rtol=0, atol=3e-5)
    assert {len(weight.dims) for weight in onnx.load(tmp_path / "convolve_over_time" / "next" / "model.onnx",
            load_external_data=False).graph.initializer if "over_time" in weight.name} == {5}  # fmt: skip


def run_graphs(folder: Path, clip: Sequence[Levels]) -> NDArray[np.float32]:
    """The latents of a clip, call by call, `[C, F, h, w]`."""
    made: list[NDArray[np.float32]] = []
    caches: dict[str, NDArray[np.float32]] = {}
    for index, frames in enumerate(clip):
        path = folder / ("next" if index else "first") / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name.removeprefix("next_") for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, {"frames": frames.astype(np.float32), **caches}), strict=True))
        made.append(outputs.pop("condition"))
        caches = outputs
    return np.concatenate(made, axis=1)
