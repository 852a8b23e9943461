"""The layers of the Wan 2.1 and Wan 2.2 video VAEs for one chunk of frames, their memory over time explicit.

Knows the arithmetic and the weights of the blocks in `diffusers.AutoencoderKLWan`. Knows nothing of ONNX, of latents'
statistics or of the loop over the chunks.

Frames stand where the batch usually stands: an activation is `[T, C, H, W]`. A causal convolution over three frames
is then one 2D convolution over three frames' channels side by side. ONNX Runtime runs it about 1.3 times faster on
CPU than the 3D one, and no layer has to transpose frames out of its way. What a convolution remembers is a cache
`[2, C, H, W]`, its last two input frames. The first chunk has no past, so only the newest tap of each kernel meets
anything but zeros: its graph holds a third of the weights and does a third of the arithmetic.

Layers compute in the type of what they are given, norms in float32 whatever it is.

A layer's `reach` says how far its output looks around itself: given the pixels around a window on which what follows
depends, those on which it depends then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 3
PAST = TAPS - 1


class Memory:
    """The last frames seen by each causal convolution, in the order in which the decoder runs them."""

    def __init__(self, past: Sequence[Tensor]) -> None:
        self._past = iter(past)
        self.kept: list[Tensor] = []

    def start(self, frame: Tensor) -> None:
        """Remembers `frame` `[1, C, H, W]` with a frame of zeros before it."""
        self.kept.append(_after_zeros(frame, PAST - 1))

    def start_empty(self, frame: Tensor) -> None:
        """Remembers zeros of the size of `frame`, for a convolution that the first chunk does not run."""
        self.kept.append(_after_zeros(frame, PAST)[:PAST])

    def start_alone(self, frame: Tensor) -> None:
        """Remembers `frame` `[1, C, H, W]`, for a convolution that looks back at one frame and not at two."""
        self.kept.append(frame)

    def extend(self, frames: Tensor, past: int = PAST) -> Tensor:
        """Puts the past before `frames`: `[T, C, H, W]` -> `[past + T, C, H, W]`, and remembers the last of them."""
        extended = torch.cat([next(self._past), frames])
        self.kept.append(extended[-past:])
        return extended

    def in_slices(self, frames: Tensor, layers: Callable[[Tensor, Memory], Tensor]) -> Tensor:
        """What `layers`, the last to use this memory, make of a few frames at a time: less is in memory at once.

        A slice remembers for the next one, as a chunk does, and is as long as what is remembered: a shorter one would
        copy more of the past than it computes.
        """
        if len(frames) <= PAST:
            return layers(frames, self)
        made, past = [], list(self._past)
        for some in frames.split(PAST):
            memory = Memory(past)
            made.append(layers(some, memory))
            past = memory.kept
        self.kept += past
        return torch.cat(made)


class CausalConvolution(nn.Module):
    """A convolution over this frame and the two before it: `[T, C, H, W]` -> `[T, C', H, W]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv3d, first: bool) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        weight = weight[:, :, -1] if first else weight.transpose(1, 2).flatten(1, 2)
        self.register_buffer("weight", weight.contiguous())
        assert conv.bias is not None
        self.register_buffer("bias", conv.bias.detach().float())
        self.first = first
        # Diffusers pads in its own forward; "same" by the size of the kernel says it without its private field.
        self.padding = (conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)

    def forward(self, frames: Tensor, memory: Memory) -> Tensor:
        if self.first:
            memory.start(frames)
        else:
            frames = _windows(memory.extend(frames))
        return F.conv2d(frames, self.weight.to(frames.dtype), self.bias.to(frames.dtype), padding=self.padding)

    def reach(self, pixels: int) -> int:
        """How many pixels beyond a window its input is needed, where its output is needed `pixels` beyond."""
        return pixels + max(self.padding)


class FrameConvolution(nn.Module):
    """A convolution that looks at one frame at a time, Conv2d or 1x1x1 Conv3d: `[T, C, H, W]` -> `[T, C', H, W]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        self.register_buffer("weight", weight[:, :, 0] if isinstance(conv, nn.Conv3d) else weight)
        assert conv.bias is not None
        self.register_buffer("bias", conv.bias.detach().float())
        self.padding = conv.kernel_size[-1] // 2

    def forward(self, frames: Tensor) -> Tensor:
        return F.conv2d(frames, self.weight.to(frames.dtype), self.bias.to(frames.dtype), padding=self.padding)

    def reach(self, pixels: int) -> int:
        """How many pixels beyond a window its input is needed, where its output is needed `pixels` beyond."""
        return pixels + self.padding


class ChannelNorm(nn.Module):
    """Each pixel's channels scaled to a root mean square of `gamma`."""

    gain: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.register_buffer("gain", norm.gamma.detach().float().flatten()[:, None, None] * norm.scale)

    def forward(self, frames: Tensor) -> Tensor:
        wide = frames.float()
        length: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(1e-12)
        return (wide / length * self.gain).to(frames.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions over frames `[n, C, h, w]`, each after a norm, and their input added to what they give."""

    def __init__(self, block: Any, first: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(block.norm1), ChannelNorm(block.norm2)
        self.conv1, self.conv2 = CausalConvolution(block.conv1, first), CausalConvolution(block.conv2, first)
        widens = isinstance(block.conv_shortcut, nn.Conv3d)
        self.shortcut = FrameConvolution(block.conv_shortcut) if widens else nn.Identity()

    def forward(self, frames: Tensor, memory: Memory) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(frames)), memory)
        inner = self.conv2(F.silu(self.norm2(inner)), memory)
        added: Tensor = inner + self.shortcut(frames)
        return added

    def reach(self, pixels: int) -> int:
        """How many pixels beyond a window its input is needed, where its output is needed `pixels` beyond."""
        return self.conv1.reach(self.conv2.reach(pixels))  # the shortcut stays within each pixel


class SpatialAttention(nn.Module):
    """Single-head attention over the pixels of each frame.

    Written as two products and a softmax, because no fused kernel takes a head as wide as this one.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = ChannelNorm(block.norm)
        self.to_qkv, self.proj = FrameConvolution(block.to_qkv), FrameConvolution(block.proj)

    def forward(self, frames: Tensor) -> Tensor:
        channels = frames.shape[1]
        query, key, value = self.to_qkv(self.norm(frames)).flatten(2).split(channels, dim=1)
        scores = (query * channels**-0.5).transpose(1, 2) @ key
        mixed = value @ scores.softmax(dim=-1).transpose(1, 2)
        attended: Tensor = self.proj(mixed.view_as(frames))
        return attended + frames


def double(frames: Tensor) -> Tensor:
    """Every pixel twice in height and width."""
    return F.interpolate(frames, scale_factor=2.0, mode="nearest")


class Upsampler(nn.Module):
    """Doubles height and width; with a `time_conv` also the number of frames, except in the first chunk."""

    def __init__(self, resample: Any, first: bool) -> None:
        super().__init__()
        self.conv = FrameConvolution(resample.resample[1])
        self.doubles_time = hasattr(resample, "time_conv")
        self.first = first
        if self.doubles_time and not first:
            self.time_conv = CausalConvolution(resample.time_conv, first)

    def forward(self, frames: Tensor, memory: Memory) -> Tensor:
        if self.doubles_time and self.first:
            memory.start_empty(frames)
        elif self.doubles_time:
            # The two halves of the channels are two successive frames: "t (a c) h w -> (t a) c h w".
            frames = self.time_conv(frames, memory).view(-1, *frames.shape[1:])
        doubled: Tensor = self.conv(double(frames))
        return doubled

    def reach(self, pixels: int) -> int:
        """How many pixels beyond a window its input is needed, where its output is needed `pixels` beyond."""
        return -(-self.conv.reach(pixels) // 2)


class DuplicatingShortcut(nn.Module):
    """Upsampling of a Wan 2.2 block's input by copying: channels to spare become frames and pixels."""

    def __init__(self, shortcut: Any, first: bool) -> None:
        super().__init__()
        self.time_factor, self.repeats = shortcut.factor_t, shortcut.repeats
        self.first = first

    def forward(self, frames: Tensor) -> Tensor:
        """The channels, repeated in place, are read as "(c a p q)", a: frame, p: row, q: column of the copies."""
        if self.repeats % 4 == 0:
            frames = double(frames.repeat_interleave(self.repeats // 4, dim=1))
        else:
            frames = F.pixel_shuffle(frames.repeat_interleave(self.repeats, dim=1), 2)
        frames = frames.unflatten(1, (-1, self.time_factor)).transpose(1, 2)
        return frames[:, -1] if self.first else frames.flatten(0, 1)


class Rise(nn.Module):
    """The end of a level: upsampling where it has it, and in Wan 2.2 the shortcut around the whole level."""

    def __init__(self, block: Any, first: bool) -> None:
        super().__init__()
        resample = block.upsampler if hasattr(block, "upsampler") else block.upsamplers and block.upsamplers[0]
        self.upsampler = Upsampler(resample, first) if resample else None
        shortcut = getattr(block, "avg_shortcut", None)
        self.shortcut = DuplicatingShortcut(shortcut, first) if shortcut else None

    def forward(self, frames: Tensor, came_in: Tensor, memory: Memory) -> Tensor:
        """`came_in` is what the level was given."""
        if self.upsampler is not None:
            frames = self.upsampler(frames, memory)
        return frames if self.shortcut is None else frames + self.shortcut(came_in)

    def reach(self, pixels: int) -> int:
        """How many pixels beyond a window its input is needed, where its output is needed `pixels` beyond."""
        return pixels if self.upsampler is None else self.upsampler.reach(pixels)


class UpBlock(nn.Module):
    """One level: residual blocks, then its rise to the next."""

    def __init__(self, block: Any, first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(resnet, first) for resnet in block.resnets)
        self.rise = Rise(block, first)

    @property
    def doubles_time(self) -> bool:
        """Whether it gives two frames for each that comes in, but for the first."""
        return self.rise.upsampler is not None and self.rise.upsampler.doubles_time

    def forward(self, frames: Tensor, memory: Memory) -> Tensor:
        inner = frames
        for resnet in self.resnets:
            inner = resnet(inner, memory)
        risen: Tensor = self.rise(inner, frames, memory)
        return risen

    def reach(self, pixels: int) -> int:
        """How many pixels beyond a window its input is needed, where its output is needed `pixels` beyond."""
        pixels = self.rise.reach(pixels)
        for resnet in reversed([*self.resnets]):
            assert isinstance(resnet, ResidualBlock)
            pixels = resnet.reach(pixels)
        return pixels


class ToPixels(nn.Module):
    """What the network drew, -1..1 in `[T, 3 * patch * patch, H / patch, W / patch]` -> u8 `[T, H, W, 3]`."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, frames: Tensor) -> Tensor:
        levels = ((frames.float() * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round()
        # "t (c q p) h w -> t (h p) (w q) c": within a patch, columns come before rows.
        patches: Tensor = levels.unflatten(1, (-1, self.patch_size, self.patch_size))
        pixels = patches.permute(0, 4, 3, 5, 2, 1).flatten(3, 4).flatten(1, 2)
        return pixels.to(torch.uint8)  # last, because TensorRT has uint8 for outputs alone


def _after_zeros(frames: Tensor, num_zeros: int) -> Tensor:
    return F.pad(frames, (0, 0, 0, 0, 0, 0, num_zeros, 0))


def _windows(frames: Tensor) -> Tensor:
    """Three successive frames' channels side by side: `[2 + T, C, H, W]` -> `[T, 3 * C, H, W]`."""
    num_windows = frames.shape[0] - PAST
    if num_windows == 1:
        return frames.flatten(0, 1)[None]
    return torch.cat([frames[tap : tap + num_windows] for tap in range(TAPS)], dim=1)
