"""The decoder of `diffusers.AutoencoderKLWan`, one latent frame at a time, as two torch modules to export.

The first does what needs the whole frame, the second what does not, so that it can run window by window. Knows the
contract of the graphs `vae_features_*` and `vae_decoder_*`, and how normalised latents become pixels. Knows nothing of
ONNX files, manifests or the loops over chunks and windows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from mutoscope_engines.symbols import sized
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...graphs.trace import NETWORK, SymbolicValue, named
from .vae_layers import (
    CausalConvolution,
    ChannelNorm,
    FrameConvolution,
    Memory,
    ResidualBlock,
    Rise,
    SpatialAttention,
    ToPixels,
    UpBlock,
)


class Chunk(nn.Module, ABC):
    """A part of the VAE, for one latent frame: what it is given, and the caches of the chunk before unless it is the
    `first` -> what it gives, and the caches for the next chunk.

    `network_dtype` is the type of the network and of its caches; what goes in and out beside them is not. Weights are
    float32 copies, whatever the type of `vae`, and converted where they are used: there are few of them.
    """

    def __init__(self, vae: AutoencoderKLWan, network_dtype: torch.dtype = torch.float32, *, first: bool) -> None:
        super().__init__()
        self.network_dtype = network_dtype
        self.forward = named(self.run, [name for name, _, _ in symbolic_inputs(vae, type(self), first=first)])

    def run(self, given: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """One chunk. Returns its output and then the caches for the next chunk."""
        memory = Memory(caches)
        return self.compute(given, memory), *memory.kept

    @abstractmethod
    def compute(self, given: Tensor, memory: Memory) -> Tensor:
        """The output of one chunk, which reads and refills `memory`."""
        ...

    @staticmethod
    @abstractmethod
    def symbolic_input(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        """Name, dtype and shape of the input beside the caches."""
        ...

    @staticmethod
    @abstractmethod
    def symbolic_output(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        """Name, dtype and shape of the output beside the caches."""
        ...


class FeatureChunk(Chunk):
    """All that happens at the size of the latents, of which each pixel sees the whole frame: `latents` f32
    `[1, C, 1, h, w]` as the denoiser leaves them -> `features` f32 `[1, C', h, w]`.

    They are those before the first upsampling, and in Wan 2.2 what its shortcut takes beside them. Latents' statistics
    and norms are float32 whatever the network is, and so are features, which loses nothing.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, vae: AutoencoderKLWan, network_dtype: torch.dtype = torch.float32, *, first: bool) -> None:
        super().__init__(vae, network_dtype, first=first)
        config, decoder = vae.config, vae.decoder
        self.register_buffer("latents_mean", torch.tensor(config.latents_mean).view(-1, 1, 1))
        self.register_buffer("latents_std", torch.tensor(config.latents_std).view(-1, 1, 1))
        self.post_quant_conv = FrameConvolution(vae.post_quant_conv)
        self.conv_in = CausalConvolution(decoder.conv_in, first)
        self.mid_resnets = nn.ModuleList(ResidualBlock(resnet, first) for resnet in decoder.mid_block.resnets)
        self.mid_attentions = nn.ModuleList(SpatialAttention(block) for block in decoder.mid_block.attentions)
        level = decoder.up_blocks[0]
        self.resnets = nn.ModuleList(ResidualBlock(resnet, first) for resnet in level.resnets)
        self.keeps_what_came_in = _has_shortcut(level)

    def compute(self, given: Tensor, memory: Memory) -> Tensor:
        unscaled = given[:, :, 0] * self.latents_std + self.latents_mean
        frames = self.post_quant_conv(unscaled.to(self.network_dtype))
        frames = self.mid_resnets[0](self.conv_in(frames, memory), memory)
        for attention, resnet in zip(self.mid_attentions, self.mid_resnets[1:], strict=True):
            frames = resnet(attention(frames), memory)
        inner = frames
        for resnet in self.resnets:
            inner = resnet(inner, memory)
        return (torch.cat([inner, frames], dim=1) if self.keeps_what_came_in else inner).float()

    @staticmethod
    def symbolic_input(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        return "latents", "float32", (1, vae.config.z_dim, 1, "h", "w")

    @staticmethod
    def symbolic_output(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        return "features", "float32", (1, _features(vae), "h", "w")


class DecoderChunk(Chunk):
    """From the first upsampling to pixels, which see no farther than `halo`: `features` f32 `[1, C', h, w]` ->
    `frames` u8 `[T, H, W, 3]`.

    T is 1 for the first chunk and the VAE's temporal scale for the others. Frames equal those of the whole clip's
    `vae.decode` after Diffusers' postprocessing. Norms and pixels are float32 whatever the network is.
    """

    def __init__(self, vae: AutoencoderKLWan, network_dtype: torch.dtype = torch.float32, *, first: bool) -> None:
        super().__init__(vae, network_dtype, first=first)
        decoder = vae.decoder
        lowest, *others = decoder.up_blocks
        self.splits_what_came_in = _has_shortcut(lowest)
        self.level_channels = (lowest.resnets[-1].conv2.out_channels, lowest.resnets[0].conv1.in_channels)
        self.rise = Rise(lowest, first)
        self.up_blocks = nn.ModuleList(UpBlock(block, first) for block in others)
        self.num_blocks_with_time = max(
            (index for index, block in enumerate(self.up_blocks, 1) if block.doubles_time), default=0
        )
        self.norm_out = ChannelNorm(decoder.norm_out)
        self.conv_out = CausalConvolution(decoder.conv_out, first)
        self.to_pixels = ToPixels(vae.config.patch_size or 1)

    def compute(self, given: Tensor, memory: Memory) -> Tensor:
        features = given.to(self.network_dtype)
        inner, came_in = (
            features.split(self.level_channels, dim=1) if self.splits_what_came_in else (features, features)
        )
        frames = self.rise(inner, came_in, memory)
        for block in self.up_blocks[: self.num_blocks_with_time]:
            frames = block(frames, memory)
        pixels: Tensor = self.to_pixels(memory.in_slices(frames, self.draw))
        return pixels

    def draw(self, frames: Tensor, memory: Memory) -> Tensor:
        """What comes once no layer adds frames any more, and takes the most memory."""
        for block in self.up_blocks[self.num_blocks_with_time :]:
            frames = block(frames, memory)
        drawn: Tensor = self.conv_out(F.silu(self.norm_out(frames)), memory)
        return drawn

    def halo(self) -> int:
        """Pixels of the features around a window on which its frames depend."""
        pixels = self.conv_out.reach(0)
        for block in reversed([*self.up_blocks]):
            assert isinstance(block, UpBlock)
            pixels = block.reach(pixels)
        return self.rise.reach(pixels)

    @staticmethod
    def symbolic_input(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        return "features", "float32", (1, _features(vae), "h", "w")

    @staticmethod
    def symbolic_output(vae: AutoencoderKLWan, *, first: bool) -> SymbolicValue:
        num_frames = 1 if first else 2 ** sum(vae.config.temperal_downsample)
        _, pixels, _, _ = _smallest_outputs(vae, DecoderChunk)[0]
        return "frames", "uint8", (num_frames, _multiple(pixels, "h"), _multiple(pixels, "w"), 3)


def symbolic_inputs(vae: AutoencoderKLWan, part: type[Chunk], *, first: bool) -> list[SymbolicValue]:
    """Name, dtype and shape of each input; sizes that are free at run time are multiples of the latents' h and w."""
    given = part.symbolic_input(vae, first=first)
    return [given] if first else [given, *_symbolic_caches(vae, part)]


def symbolic_outputs(vae: AutoencoderKLWan, part: type[Chunk], *, first: bool) -> list[SymbolicValue]:
    """Name, dtype and shape of each output, as `symbolic_inputs`."""
    prefix = "" if first else "next_"
    caches = [(prefix + name, dtype, shape) for name, dtype, shape in _symbolic_caches(vae, part)]
    return [part.symbolic_output(vae, first=first), *caches]


def example_inputs(
    vae: AutoencoderKLWan, part: type[Chunk], *, first: bool, height: int = 3, width: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of the graph; `height` and `width` are those of the latents. The same seed gives the same inputs.

    For tracing, sizes must be at least 2: the exporter treats sizes of one as constants. Frames are levels in 0..255.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"h": height, "w": width}
    inputs = {
        name: torch.randn(sized(shape, sizes), generator=generator)
        for name, _, shape in symbolic_inputs(vae, part, first=first)
    }
    return inputs | {name: (64 * value + 128).clamp(0, 255) for name, value in inputs.items() if name == "frames"}


def _symbolic_caches(vae: AutoencoderKLWan, part: type[Chunk]) -> list[SymbolicValue]:
    return [
        (f"cache_{index}", NETWORK, (past, channels, _multiple(scale, "h"), _multiple(scale, "w")))
        for index, (past, channels, scale, _) in enumerate(_smallest_outputs(vae, part)[1:])
    ]


def _smallest_outputs(vae: AutoencoderKLWan, part: type[Chunk]) -> list[torch.Size]:
    """The shapes of the first chunk's outputs for a latent frame of one pixel, computed without any data."""
    _, _, shape = part.symbolic_input(vae, first=True)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        chunk = part(vae, first=True)
        return [output.shape for output in chunk(torch.empty(sized(shape, {"h": 1, "w": 1})))]


def _features(vae: AutoencoderKLWan) -> int:
    """C', the channels of the features."""
    level = vae.decoder.up_blocks[0]
    came_in = level.resnets[0].conv1.in_channels if _has_shortcut(level) else 0
    return int(level.resnets[-1].conv2.out_channels + came_in)


def _has_shortcut(level: nn.Module) -> bool:
    return bool(getattr(level, "avg_shortcut", None))


def _multiple(scale: int, letter: str) -> str:
    return letter if scale == 1 else f"{scale}*{letter}"
