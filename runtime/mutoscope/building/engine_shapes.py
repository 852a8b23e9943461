"""From the largest video, and how it is decoded, to the shapes that engines are built for.

Knows geometry and symbols, no library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mutoscope_engines.cache.identity import Profile, ShapeRange
from mutoscope_engines.precisions import PRECISIONS
from mutoscope_engines.symbols import sized

from ..bundle.contract import LORA_RANK, TILED
from ..bundle.manifest import MAX_BRANCHES, Graph, Manifest
from ..planning.tiles import tile_window, window_within
from ..values import checks

# Guidance on or off, any solver, LoRAs of any rank: also where the size of the video is exact.
FREE_SYMBOLS = ("B", "K", LORA_RANK)
TUNED_LORA_RANK = 64  # of all LoRAs together
# TensorRT-RTX fuses attention in FP8 only where no video that an engine takes has fewer tokens; measured at 8, 16, 17
# (scores in memory: 39 GB at 480x832x81) and 32.
FUSED_FP8_TOKENS = 32


@dataclass(frozen=True)
class LargestVideo:
    """The largest video that engines are built for, and how many guidance branches one call of the network takes."""

    height: int  # H
    width: int  # W
    num_frames: int  # T
    branches: int  # B
    window: tuple[int, int]  # h, w of the features that the VAE decodes at once

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames} with branches_per_call={self.branches}"

    @classmethod
    def choose(
        cls,
        shapes: tuple[int, int, int] | None,
        branches: int | None,
        manifest: Manifest,
        tile: tuple[int, int] | None = None,
    ) -> LargestVideo:
        """The bundle's default size, both branches in one call and no tiles, where nothing else is asked for.

        Args:
            shapes: (height, width, num_frames).
            branches: 1 or 2.
            tile: (height, width) of what the VAE decodes at once, at most.

        Raises:
            RequestError: a size that the model cannot make; names the nearest it can.
        """
        geometry, defaults = manifest.geometry, manifest.defaults
        height, width, num_frames = defaults.height, defaults.width, defaults.num_frames
        if shapes is not None:
            height, width, num_frames = checks.video_size("shapes", shapes, manifest.sizes)
        window = (height // geometry.vae_scale_factor_spatial, width // geometry.vae_scale_factor_spatial)
        if tile is not None:
            window = window_within(window, tile_window(tile, geometry), geometry.vae_decoder_halo)
        return cls(
            height=height,
            width=width,
            num_frames=num_frames,
            branches=checks.whole(
                "branches_per_call", MAX_BRANCHES if branches is None else branches, minimum=1, maximum=MAX_BRANCHES
            ),
            window=window,
        )

    def symbols(self, manifest: Manifest, role: str) -> dict[str, int]:
        """The largest size of every symbol in the shapes of the graph of a role."""
        geometry = manifest.geometry
        frames = manifest.frames.latent_frames(self.num_frames)
        largest = {name: high for name, (_, high) in manifest.symbol_ranges.items()}
        rows, columns = (
            self.window
            if role in TILED
            else (self.height // geometry.vae_scale_factor_spatial, self.width // geometry.vae_scale_factor_spatial)
        )
        return largest | {"B": self.branches, "F": frames, "h": rows, "w": columns}


def profile_of(graph: Graph, video: LargestVideo, manifest: Manifest, *, exact_size: bool = False) -> Profile:
    """From the smallest shapes that the graph takes to those of the largest video, for which the engine is tuned; it is
    tuned for LoRAs of a usual rank.

    With `exact_size` no other height, width and length than those of the video; branches and solvers stay free. With
    attention in FP8 the smallest video is one whose attention can be fused.
    """
    largest = video.symbols(manifest, graph.role)
    smallest = {
        name: largest[name] if exact_size and name not in FREE_SYMBOLS else low
        for name, (low, _) in manifest.symbol_ranges.items()
    }
    if PRECISIONS[graph.precision].fp8_attention:
        smallest |= smallest_in_fp8(largest, manifest.geometry.patch_size)
    tuned = largest | {LORA_RANK: TUNED_LORA_RANK}
    return {
        tensor.name: ShapeRange(
            sized(tensor.shape, smallest), opt=sized(tensor.shape, tuned), max=sized(tensor.shape, largest)
        )
        for tensor in graph.inputs
    }


def smallest_in_fp8(largest: Mapping[str, int], patch_size: tuple[int, int, int]) -> dict[str, int]:
    """The smallest height and width of the latents whose single frames have the tokens that fusion asks for."""
    side = math.isqrt(FUSED_FP8_TOKENS - 1) + 1
    return {symbol: min(largest[symbol], side * patch) for symbol, patch in zip("hw", patch_size[1:], strict=True)}
