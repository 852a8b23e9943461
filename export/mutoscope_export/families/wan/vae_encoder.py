"""The encoder of `diffusers.AutoencoderKLWan`, one latent frame at a time, as torch modules to export.

Knows the contract of the graphs `vae_encoder_*`, and how levels of pixels become normalised latents. Knows nothing of
ONNX files, manifests or the loop over chunks. Activations and caches are as in `vae_layers`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import Tensor, nn

from ...graphs.trace import SymbolicValue
from .vae import Chunk
from .vae_layers import TAPS, CausalConvolution, ChannelNorm, FrameConvolution, Memory, ResidualBlock, SpatialAttention


class EncoderChunk(Chunk):
    """From pixels to one latent frame: `frames` f32 `[T, H, W, 3]`, in levels 0..255 -> `condition` f32 `[C, 1, h, w]`,
    normalised as the denoiser takes it.

    T is 1 for the first chunk and the VAE's temporal scale for the others. Levels are floats because a frame that is
    not given is mid grey, 127.5. The latents are the mode of the posterior, and equal those of the whole clip's
    `vae.encode`. Norms, levels and statistics are float32 whatever the network is.
    """

    latents_mean: Tensor
    latents_per_std: Tensor

    def __init__(self, vae: AutoencoderKLWan, network_dtype: torch.dtype = torch.float32, *, first: bool) -> None:
        super().__init__(vae, network_dtype, first=first)
        config, encoder = vae.config, vae.encoder
        self.register_buffer("latents_mean", torch.tensor(config.latents_mean).view(-1, 1, 1))
        self.register_buffer("latents_per_std", 1.0 / torch.tensor(config.latents_std).view(-1, 1, 1))
        self.from_levels = FromLevels(config.patch_size or 1)
        self.conv_in = CausalConvolution(encoder.conv_in, first)
        self.down_blocks = nn.ModuleList(_layer(block, first) for block in encoder.down_blocks)
        self.mid_resnets = nn.ModuleList(ResidualBlock(resnet, first) for resnet in encoder.mid_block.resnets)
        self.mid_attentions = nn.ModuleList(SpatialAttention(block) for block in encoder.mid_block.attentions)
        self.norm_out = ChannelNorm(encoder.norm_out)
        self.conv_out = CausalConvolution(encoder.conv_out, first)
        self.quant_conv = FrameConvolution(vae.quant_conv)
        # The other half of what it gives is the variance.
        self.quant_conv.weight = self.quant_conv.weight[: config.z_dim]
        self.quant_conv.bias = self.quant_conv.bias[: config.z_dim]

    def compute(self, given: Tensor, memory: Memory) -> Tensor:
        frames = self.conv_in(self.from_levels(given).to(self.network_dtype), memory)
        for layer in self.down_blocks:
            frames = layer(frames) if isinstance(layer, SpatialAttention) else layer(frames, memory)
        frames = self.mid_resnets[0](frames, memory)
        for attention, resnet in zip(self.mid_attentions, self.mid_resnets[1:], strict=True):
            frames = resnet(attention(frames), memory)
        mode = self.quant_conv(self.conv_out(F.silu(self.norm_out(frames)), memory)).float()
        latents: Tensor = (mode - self.latents_mean) * self.latents_per_std
        return latents.transpose(0, 1)

    @staticmethod
    def symbolic_input(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        num_frames = 1 if first else 2 ** sum(vae.config.temperal_downsample)
        scale = 2 ** (len(vae.config.dim_mult) - 1) * (vae.config.patch_size or 1)
        return "frames", "float32", (num_frames, f"{scale}*h", f"{scale}*w", 3)

    @staticmethod
    def symbolic_output(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        return "condition", "float32", (vae.config.z_dim, 1, "h", "w")


class PictureEncoder(EncoderChunk):
    """The first chunk where none follows: a picture. It keeps nothing, which for large ones saves gigabytes."""

    def run(self, given: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        condition, *_ = super().run(given, *caches)
        return (condition,)


class FromLevels(nn.Module):
    """Levels 0..255 `[T, H, W, 3]` -> -1..1 in `[T, 3 * patch * patch, H / patch, W / patch]`."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, levels: Tensor) -> Tensor:
        frames: Tensor = levels.permute(0, 3, 1, 2) / 255.0 * 2.0 - 1.0
        if self.patch_size == 1:
            return frames
        # "t c (h p) (w q) -> t (c q p) h w": within a patch, columns come before rows.
        patches: Tensor = frames.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))
        return patches.permute(0, 1, 5, 3, 2, 4).flatten(1, 3)


class Downsampler(nn.Module):
    """Halves height and width; with a `time_conv` also the number of frames, except in the first chunk."""

    weight: Tensor
    bias: Tensor
    time_weight: Tensor
    time_bias: Tensor

    def __init__(self, resample: Any, first: bool) -> None:
        super().__init__()
        conv = resample.resample[1]
        self.register_buffer("weight", conv.weight.detach().float())
        self.register_buffer("bias", conv.bias.detach().float())
        self.halves_time = hasattr(resample, "time_conv")
        self.first = first
        if self.halves_time and not first:
            weight = resample.time_conv.weight.detach().float()
            self.register_buffer("time_weight", weight.transpose(1, 2).flatten(1, 2).contiguous())
            self.register_buffer("time_bias", resample.time_conv.bias.detach().float())

    def forward(self, frames: Tensor, memory: Memory) -> Tensor:
        weight, bias = self.weight.to(frames.dtype), self.bias.to(frames.dtype)
        halved = F.conv2d(F.pad(frames, (0, 1, 0, 1)), weight, bias, stride=2)
        if not self.halves_time:
            return halved
        if self.first:
            memory.start_alone(halved)
            return halved
        seen, count = memory.extend(halved, past=1), len(halved)
        windows = torch.cat([seen[tap : tap + count - 1 : 2] for tap in range(TAPS)], dim=1)
        return F.conv2d(windows, self.time_weight.to(frames.dtype), self.time_bias.to(frames.dtype))


class AveragingShortcut(nn.Module):
    """Downsampling of a Wan 2.2 block's input by means: frames and pixels become channels, of which groups are one."""

    def __init__(self, shortcut: Any) -> None:
        super().__init__()
        self.out_channels: int = shortcut.out_channels
        self.time_factor, self.space_factor = shortcut.factor_t, shortcut.factor_s

    def forward(self, frames: Tensor) -> Tensor:
        """`(t a) c (h p) (w q) -> t (c a p q) h w`; zeros come before the first frame of the video."""
        missing = -len(frames) % self.time_factor
        padded = F.pad(frames, (0, 0, 0, 0, 0, 0, missing, 0)) if missing else frames
        cells: Tensor = padded.unflatten(3, (-1, self.space_factor)).unflatten(2, (-1, self.space_factor))
        cells = cells.unflatten(0, (-1, self.time_factor)).permute(0, 2, 1, 4, 6, 3, 5).flatten(1, 4)
        grouped: Tensor = cells.unflatten(1, (self.out_channels, -1))
        return grouped.mean(2)


class DownBlock(nn.Module):
    """A level of Wan 2.2: residual blocks and downsampling, with a shortcut around both."""

    def __init__(self, block: Any, first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(resnet, first) for resnet in block.resnets)
        self.downsampler = Downsampler(block.downsampler, first) if block.downsampler is not None else None
        self.shortcut = AveragingShortcut(block.avg_shortcut)

    def forward(self, frames: Tensor, memory: Memory) -> Tensor:
        inner = frames
        for resnet in self.resnets:
            inner = resnet(inner, memory)
        if self.downsampler is not None:
            inner = self.downsampler(inner, memory)
        added: Tensor = inner + self.shortcut(frames)
        return added


def _layer(block: Any, first: bool) -> nn.Module:
    if isinstance(block, WanResidualBlock):
        return ResidualBlock(block, first)
    if isinstance(block, WanResample):
        return Downsampler(block, first)
    return SpatialAttention(block) if isinstance(block, WanAttentionBlock) else DownBlock(block, first)
