"""The line's decoder as two modules to export, a call a window: what needs the whole frame, and what does not."""

from __future__ import annotations

import torch
from mutoscope_engines.symbols import sized
from mutoscope_export.graphs.trace import NETWORK, SymbolicValue
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import SCALE, WINDOW_FRAMES, WINDOW_LATENTS, DriftDecoder

HALO = 2  # latent pixels: one for `conv_mid`, and `conv_out` reaches into one more


class Features(nn.Module):
    """`latents` f32 `[1,C,2,h,w]` -> `features` f32 `[1,C',h,w]`. Its windows do not depend on each other."""

    def __init__(self, vae: DriftDecoder, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vae, self.network_dtype = vae, network_dtype

    def forward(self, latents: Tensor) -> Tensor:
        unscaled = (latents * self.vae.config.std + self.vae.config.mean).flatten(1, 2)
        hidden = F.silu(convolve(self.vae.conv_in, unscaled, self.network_dtype).float())
        return hidden + hidden.mean((2, 3), keepdim=True)


class FirstWindow(nn.Module):
    """`features` f32 `[1,C',h,w]` -> `frames` u8 `[6,4h,4w,3]` and `cache_0`, from which the next window goes on."""

    def __init__(self, vae: DriftDecoder, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vae, self.network_dtype = vae, network_dtype

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.draw(convolve(self.vae.conv_mid, features, self.network_dtype))

    def draw(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        large = F.interpolate(F.silu(hidden), scale_factor=SCALE, mode="nearest")
        pixels = convolve(self.vae.conv_out, large, self.network_dtype).float().unflatten(1, (WINDOW_FRAMES, 3))[0]
        frames = ((pixels.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return frames, hidden


class NextWindow(FirstWindow):
    """The same with `cache_0` of the window before."""

    def forward(self, features: Tensor, cache_0: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hidden = convolve(self.vae.conv_mid, features, self.network_dtype)
        return self.draw(hidden + convolve(self.vae.carry, cache_0, self.network_dtype))


MODULES = {
    "vae_features_first": Features,
    "vae_features_next": Features,
    "vae_decoder_first": FirstWindow,
    "vae_decoder_next": NextWindow,
}


def convolve(layer: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The layer in another type than its weights have."""
    return F.conv2d(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype), padding=layer.padding)


def inputs(vae: DriftDecoder, *, role: str) -> list[SymbolicValue]:
    """Name, dtype and shape of each input of the graph of a role."""
    if role.startswith("vae_features"):
        return [("latents", "float32", (1, vae.config.channels, WINDOW_LATENTS, "h", "w"))]
    given: SymbolicValue = ("features", "float32", (1, vae.config.width, "h", "w"))
    return [given, *([_cache(vae, "cache_0")] if role == "vae_decoder_next" else [])]


def outputs(vae: DriftDecoder, *, role: str) -> list[SymbolicValue]:
    """The same of what it gives."""
    if role.startswith("vae_features"):
        return [("features", "float32", (1, vae.config.width, "h", "w"))]
    frames: SymbolicValue = ("frames", "uint8", (WINDOW_FRAMES, f"{SCALE}*h", f"{SCALE}*w", 3))
    return [frames, _cache(vae, "next_cache_0" if role == "vae_decoder_next" else "cache_0")]


def examples(vae: DriftDecoder, *, role: str) -> list[dict[str, Tensor]]:
    """At several sizes; what is traced has no size of 1."""
    made = []
    for seed, sizes in enumerate(({"h": 3, "w": 4}, {"h": 5, "w": 2})):
        torch.manual_seed(seed)
        made.append({name: torch.randn(sized(shape, sizes)) for name, _, shape in inputs(vae, role=role)})
    return made


def _cache(vae: DriftDecoder, name: str) -> SymbolicValue:
    return name, NETWORK, (1, vae.config.width, "h", "w")
