"""The decoder of `diffusers.AutoencoderKLWan`, one latent frame at a time, as a torch module to export.

Knows the contract of the `vae_decoder_first` and `vae_decoder_next` graphs, and how normalised latents become pixels.
Knows nothing of ONNX files, manifests or the loop over the chunks.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...graph import NETWORK, SymbolicValue
from .vae_layers import (
    CausalConvolution,
    ChannelNorm,
    FrameConvolution,
    Memory,
    ResidualBlock,
    SpatialAttention,
    ToPixels,
    UpBlock,
)

T = TypeVar("T")


class DecoderChunk(nn.Module):
    """Decodes one latent frame: `latents` f32 `[1, C, 1, h, w]` as the denoiser leaves them, and the caches of the
    chunk before unless it is the `first` -> `frames` u8 `[T, H, W, 3]` and the caches for the next chunk.

    T is 1 for the first chunk and the VAE's temporal scale for the others. Frames equal those of the whole clip's
    `vae.decode` after Diffusers' postprocessing. `network_dtype` is the type of the network and of its caches; latents'
    statistics, norms and pixels are float32 whatever it is. Weights are float32 copies, whatever the type of `vae`, and
    converted where they are used: there are few of them.
    """

    def __init__(self, vae: AutoencoderKLWan, network_dtype: torch.dtype = torch.float32, *, first: bool) -> None:
        super().__init__()
        self.network_dtype = network_dtype
        config, decoder = vae.config, vae.decoder
        self.register_buffer("latents_mean", torch.tensor(config.latents_mean).view(-1, 1, 1))
        self.register_buffer("latents_std", torch.tensor(config.latents_std).view(-1, 1, 1))
        self.post_quant_conv = FrameConvolution(vae.post_quant_conv)
        self.conv_in = CausalConvolution(decoder.conv_in, first)
        self.mid_resnets = nn.ModuleList(ResidualBlock(resnet, first) for resnet in decoder.mid_block.resnets)
        self.mid_attentions = nn.ModuleList(SpatialAttention(block) for block in decoder.mid_block.attentions)
        self.up_blocks = nn.ModuleList(UpBlock(block, first) for block in decoder.up_blocks)
        self.norm_out = ChannelNorm(decoder.norm_out)
        self.conv_out = CausalConvolution(decoder.conv_out, first)
        self.to_pixels = ToPixels(config.patch_size or 1)
        if not first:
            self.forward = _named(self.decode, [name for name, _, _ in symbolic_inputs(vae, first=False)])

    def decode(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        memory = Memory(caches)
        unscaled = latents[:, :, 0] * self.latents_std + self.latents_mean
        frames = self.post_quant_conv(unscaled.to(self.network_dtype))
        frames = self.mid_resnets[0](self.conv_in(frames, memory), memory)
        for attention, resnet in zip(self.mid_attentions, self.mid_resnets[1:], strict=True):
            frames = resnet(attention(frames), memory)
        for block in self.up_blocks:
            frames = block(frames, memory)
        frames = self.conv_out(F.silu(self.norm_out(frames)), memory)
        return self.to_pixels(frames), *memory.kept

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        return self.decode(latents)


def symbolic_inputs(vae: AutoencoderKLWan, *, first: bool) -> list[SymbolicValue]:
    """Name, dtype and shape of each input; sizes that are free at run time are multiples of the latents' h and w."""
    latents = ("latents", "float32", (1, vae.config.z_dim, 1, "h", "w"))
    return [latents] if first else [latents, *_symbolic_caches(vae)]


def symbolic_outputs(vae: AutoencoderKLWan, *, first: bool) -> list[SymbolicValue]:
    """Name, dtype and shape of each output, as `symbolic_inputs`."""
    num_frames = 1 if first else 2 ** sum(vae.config.temperal_downsample)
    _, pixels, _, _ = _smallest_outputs(vae)[0]
    frames = ("frames", "uint8", (num_frames, _multiple(pixels, "h"), _multiple(pixels, "w"), 3))
    prefix = "" if first else "next_"
    return [frames, *((prefix + name, dtype, shape) for name, dtype, shape in _symbolic_caches(vae))]


def example_inputs(
    vae: AutoencoderKLWan, *, first: bool, height: int = 3, width: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of the graph; `height` and `width` are those of the latents. The same seed gives the same inputs.

    For tracing, sizes must be at least 2: the exporter treats sizes of one as constants.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {"latents": torch.randn(1, vae.config.z_dim, 1, height, width, generator=generator)}
    if not first:
        for index, (past, channels, scale, _) in enumerate(_smallest_outputs(vae)[1:]):
            shape = (past, channels, scale * height, scale * width)
            inputs[f"cache_{index}"] = torch.randn(shape, generator=generator)
    return inputs


def _symbolic_caches(vae: AutoencoderKLWan) -> list[SymbolicValue]:
    return [
        (f"cache_{index}", NETWORK, (past, channels, _multiple(scale, "h"), _multiple(scale, "w")))
        for index, (past, channels, scale, _) in enumerate(_smallest_outputs(vae)[1:])
    ]


def _smallest_outputs(vae: AutoencoderKLWan) -> list[torch.Size]:
    """The shapes of the first chunk's outputs for a latent frame of one pixel, computed without any data."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        chunk = DecoderChunk(vae, first=True)
        return [output.shape for output in chunk(torch.empty(1, vae.config.z_dim, 1, 1, 1))]


def _multiple(scale: int, letter: str) -> str:
    return letter if scale == 1 else f"{scale}*{letter}"


def _named(function: Callable[..., T], names: Sequence[str]) -> Callable[..., T]:
    """`function` with one parameter for each of `names`: the exporter names inputs by the signature."""

    def named(*args: Tensor, **kwargs: Tensor) -> T:
        return function(*args, *kwargs.values())

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    named.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return named
