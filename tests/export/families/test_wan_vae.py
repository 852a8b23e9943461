"""The decoder of one chunk, as a torch module and as written graphs, against the whole-clip decode of Diffusers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor
from mutoscope.planning.tiles import least_window, tiles_of
from mutoscope_export.families.wan import vae as wan_vae
from mutoscope_export.families.wan.vae_layers import PAST
from mutoscope_export.graphs.trace import NETWORK, dynamic_shapes, export_graph

WAN_22 = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
CONFIGS = {
    "wan 2.1": {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]},
    "wan 2.1, deep, early time": {"dim_mult": [1, 2, 2], "temperal_downsample": [True, False], "num_res_blocks": 2},
    "wan 2.1, no time": {"dim_mult": [1, 2], "temperal_downsample": [False], "z_dim": 3},
    "wan 2.2": {**WAN_22, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "decoder_base_dim": 8},
    "wan 2.2, late time": {**WAN_22, "dim_mult": [1, 1, 2, 2], "temperal_downsample": [True, False, False]},
    "wan 2.2, wide steps": {**WAN_22, "dim_mult": [1, 1, 4, 4], "temperal_downsample": [False, True, True]},
    "wan 2.2, no patches": {"is_residual": True, "dim_mult": [1, 2, 2], "temperal_downsample": [True, True]},
}
# Small, because writing a graph is what takes time; the second still has a block that trades channels for pixels.
WRITTEN = {
    "wan 2.1": {"dim_mult": [1, 2], "temperal_downsample": [True], "num_res_blocks": 0},
    "wan 2.2": {**WAN_22, "dim_mult": [1, 1, 2, 2], "temperal_downsample": [False, True, True], "num_res_blocks": 0},
}

PARTS = {"features": wan_vae.FeatureChunk, "decoder": wan_vae.DecoderChunk}
GRAPHS = [(f"{name}_{which}", part, which == "first") for name, part in PARTS.items() for which in ("first", "next")]

# How far from the exact level a rounded one may be: half a level, and float32 rounding of a value up to 255.
HALF_A_LEVEL = 0.5 + 1e-2


def random_vae(**config: object) -> AutoencoderKLWan:
    """Every parameter and the latents' statistics random, pixels neither flat nor saturated."""
    defaults = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1}
    config = defaults | config
    generator = torch.Generator().manual_seed(5)
    statistics = torch.rand(2, config["z_dim"], generator=generator) * 2 + 0.5
    vae = AutoencoderKLWan(**config, latents_mean=statistics[0].tolist(), latents_std=statistics[1].tolist()).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith("gamma")
            parameter.copy_(noise / (25 if is_gain or parameter.ndim == 1 else parameter[0].numel()) ** 0.5 + is_gain)
    return vae


def random_latents(vae: AutoencoderKLWan, num_frames: int, height: int, width: int) -> torch.Tensor:
    shape = (1, vae.config.z_dim, num_frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(num_frames))


def expected_levels(vae: AutoencoderKLWan, latents: torch.Tensor) -> np.ndarray:
    """What `WanPipeline` does after the last step, in 0..255 before rounding: float `[T, H, W, 3]`."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        video = vae.decode(latents * std + mean, return_dict=False)[0]
    levels = 255 * VideoProcessor().postprocess_video(video, output_type="np")[0]
    assert np.mean((levels > 0) & (levels < 255)) > 0.5
    assert levels.std() > 10
    return levels


def assert_rounded(frames: np.ndarray, levels: np.ndarray) -> None:
    assert frames.dtype == np.uint8
    assert frames.shape == levels.shape
    assert np.abs(frames - levels).max() <= HALF_A_LEVEL


def make_chunks(vae: AutoencoderKLWan, part: type[wan_vae.Chunk], given: list[torch.Tensor]) -> list[torch.Tensor]:
    """What one part makes of each latent frame in turn."""
    first, following = (part(vae, first=first) for first in (True, False))
    caches, made = [], []
    with torch.no_grad():
        for index, value in enumerate(given):
            chunk, *caches = (following if index else first)(value, *caches)
            made.append(chunk)
    return made


def run_modules(vae: AutoencoderKLWan, latents: torch.Tensor) -> np.ndarray:
    """All frames, chunk by chunk, by the torch modules."""
    features = make_chunks(vae, wan_vae.FeatureChunk, list(latents.split(1, dim=2)))
    return torch.cat(make_chunks(vae, wan_vae.DecoderChunk, features)).numpy()


def run_part(folder: Path, name: str, given: list[np.ndarray]) -> list[list[np.ndarray]]:
    """All outputs of every chunk of one part, by ONNX Runtime."""
    first, following = (
        onnxruntime.InferenceSession(str(folder / f"{name}_{which}" / "model.onnx"), providers=["CPUExecutionProvider"])
        for which in ("first", "next")
    )
    names = [value.name for value in following.get_inputs()]
    chunks = [first.run(None, {names[0]: given[0]})]
    for value in given[1:]:
        chunks.append(following.run(None, dict(zip(names, [value, *chunks[-1][1:]], strict=True))))
    return chunks


def run_graphs(folder: Path, latents: torch.Tensor) -> dict[str, list[list[np.ndarray]]]:
    """All outputs of every chunk, by part."""
    features = run_part(folder, "features", np.split(latents.numpy(), latents.shape[2], axis=2))
    return {"features": features, "decoder": run_part(folder, "decoder", [chunk[0] for chunk in features])}


@pytest.fixture(scope="module")
def export_config(tmp_path_factory: pytest.TempPathFactory):
    """Gives, by name of the config, the VAE and the folder of its four graphs, written once."""

    @functools.cache
    def export(name: str) -> tuple[AutoencoderKLWan, Path]:
        vae, folder = random_vae(**WRITTEN[name]), tmp_path_factory.mktemp("vae")
        for graph, part, first in GRAPHS:
            export_graph(
                part(vae, first=first),
                wan_vae.example_inputs(vae, part, first=first),
                dynamic_shapes(wan_vae.symbolic_inputs(vae, part, first=first)),
                [output for output, _, _ in wan_vae.symbolic_outputs(vae, part, first=first)],
                folder / graph,
            )
        return vae, folder

    return export


@pytest.fixture(params=WRITTEN)
def written(request: pytest.FixtureRequest, export_config):
    return export_config(request.param)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_chunks_of_the_module_equal_the_whole_clip_of_diffusers(config):
    vae = random_vae(**config)
    latents = random_latents(vae, 4, 3, 2)
    assert_rounded(run_modules(vae, latents), expected_levels(vae, latents))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_layers_after_the_last_doubling_of_time_see_as_many_frames_at_once_as_they_remember(config):
    vae = random_vae(**config)
    chunk = wan_vae.DecoderChunk(vae, first=False)
    seen = []
    for layer in (chunk.up_blocks[-1].resnets[0], chunk.conv_out):
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    frames = chunk(*wan_vae.example_inputs(vae, wan_vae.DecoderChunk, first=False).values())[0]
    assert max(seen) <= PAST
    assert sum(seen) == 2 * frames.shape[0]


def test_a_bfloat16_checkpoint_decodes_as_its_weights_do_in_float32():
    vae = random_vae(**CONFIGS["wan 2.2"]).to(torch.bfloat16)
    latents = random_latents(vae, 2, 2, 3)
    frames = run_modules(vae, latents)
    assert_rounded(frames, expected_levels(vae.float(), latents))


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 5, 2), (2, 1, 1), (4, 2, 7)])
def test_chunks_of_the_graphs_equal_the_whole_clip_at_sizes_that_were_not_traced(written, num_frames, height, width):
    vae, folder = written
    latents = random_latents(vae, num_frames, height, width)
    frames = np.concatenate([chunk[0] for chunk in run_graphs(folder, latents)["decoder"]])
    assert_rounded(frames, expected_levels(vae, latents))


def test_windows_of_the_features_become_the_whole_clip_of_diffusers_without_their_halos(written):
    vae, folder = written
    size = (11, 9)
    latents = random_latents(vae, 3, *size)
    halo = wan_vae.DecoderChunk(vae, first=True).halo()
    expected = expected_levels(vae, latents)
    scale = expected.shape[1] // size[0]
    features = [chunk[0] for chunk in run_graphs(folder, latents)["features"]]
    frames = np.zeros(expected.shape, np.uint8)
    tiles = tiles_of(size, (least_window(size[0], 2, halo), least_window(size[1], 2, halo)), halo)
    for tile in tiles:
        chunks = run_part(folder, "decoder", [np.ascontiguousarray(tile.of_features(each)) for each in features])
        tile.paste(np.concatenate([chunk[0] for chunk in chunks]), frames, scale)
    assert len(tiles) == 4 and halo > 0
    assert_rounded(frames, expected)


def test_graphs_have_the_inputs_and_outputs_the_manifest_will_state(written):
    vae, folder = written
    for name, part, first in GRAPHS:
        graph = onnx.load(folder / name / "model.onnx", load_external_data=False).graph
        for values, stated in (
            (graph.input, wan_vae.symbolic_inputs(vae, part, first=first)),
            (graph.output, wan_vae.symbolic_outputs(vae, part, first=first)),
        ):
            types = [value.type.tensor_type for value in values]
            shapes = [tuple(dim.dim_param or dim.dim_value for dim in type_.shape.dim) for type_ in types]
            dtypes = [onnx.helper.tensor_dtype_to_np_dtype(type_.elem_type).name for type_ in types]
            wanted = [(name, dtype.replace(NETWORK, "float32"), shape) for name, dtype, shape in stated]
            assert list(zip([value.name for value in values], dtypes, shapes, strict=True)) == wanted


def test_outputs_have_the_stated_sizes(written):
    vae, folder = written
    sizes = {"h": 2, "w": 7}
    made = run_graphs(folder, random_latents(vae, 2, sizes["h"], sizes["w"]))
    for name, part, first in GRAPHS:
        chunk = made[name.partition("_")[0]][0 if first else 1]
        for value, (_, dtype, shape) in zip(chunk, wan_vae.symbolic_outputs(vae, part, first=first), strict=True):
            assert value.dtype == dtype.replace(NETWORK, "float32")
            assert value.shape == tuple(eval(str(size), sizes) for size in shape)


def test_graphs_scatter_and_gather_nothing_and_convolve_in_two_dimensions(written):
    _, folder = written
    for name, _, _ in GRAPHS:
        graph = onnx.load(folder / name / "model.onnx", load_external_data=False).graph
        assert not {node.op_type for node in graph.node} & {
            "ScatterND",
            "GatherND",
            "ScatterElements",
            "GatherElements",
        }
        ranks = {weight.name: len(weight.dims) for weight in graph.initializer}
        assert {ranks[node.input[1]] for node in graph.node if node.op_type == "Conv"} == {4}


def test_the_first_graphs_hold_a_third_of_the_causal_weights_and_no_weight_is_in_two_parts(written):
    vae, folder = written
    sizes = {"first": 0, "next": 0}
    for name, _, _ in GRAPHS:
        graph = onnx.load(folder / name / "model.onnx", load_external_data=False).graph
        weights = {weight.name: weight.dims for weight in graph.initializer}
        used = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        sizes[name.partition("_")[2]] += sum(np.prod(weights[weight]) for weight in used)
    kernels = [
        m.weight
        for m in [vae.post_quant_conv, *vae.decoder.modules()]
        if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)
    ]
    over_time = [kernel for kernel in kernels if kernel.ndim == 5 and kernel.shape[2] == 3]
    time_only = [kernel for kernel in over_time if kernel.shape[3] == 1]
    everything = sum(kernel.numel() for kernel in kernels)
    assert sizes["next"] == everything
    saved = sum(kernel.numel() for kernel in over_time) * 2 // 3 + sum(kernel.numel() for kernel in time_only) // 3
    assert sizes["first"] == everything - saved


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_frames_depend_on_features_as_far_as_the_halo_and_no_farther(config):
    """By the gradient of what one pixel of the features becomes, in the second chunk, which sees the first's caches."""
    vae = random_vae(**config)
    first, following = (wan_vae.DecoderChunk(vae, first=first) for first in (True, False))
    halo = first.halo()
    middle, size = halo + 2, 2 * halo + 5
    first.to_pixels = following.to_pixels = torch.nn.Identity()  # what is rounded has no gradient
    _, _, (_, channels, _, _) = wan_vae.DecoderChunk.symbolic_input(vae, first=True)
    shape = (2, 1, channels, size, size)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    frames = following(features[1], *first(features[0])[1:])[0]
    scale = frames.shape[-1] // size
    frames[..., middle * scale : (middle + 1) * scale, middle * scale : (middle + 1) * scale].sum().backward()
    for gradient in features.grad:
        depends = (gradient != 0).any(1)[0].numpy()
        inside = np.zeros_like(depends)
        inside[2:-2, 2:-2] = True
        np.testing.assert_array_equal(depends, inside)
