"""Latents into frames: a few latent frames at a time, whole or in tiles, the caches of one call handed to the next.

Knows the roles of a decoder and what they take and give. Knows nothing of requests, or of who takes the frames.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from mutoscope_engines.session import Host, Tensor
from numpy.typing import NDArray

from ..bundle.contract import TILED
from ..bundle.manifest import Frames as Lengths
from ..errors import ShapeError
from ..output.frames import Frames, refuse_unlike
from ..planning.plan import Plan
from ..planning.tiles import tiles_of
from .calls import call_by_call
from .loaded import LoadedGraphs


@dataclass(frozen=True, eq=False)
class HostTensor:
    """What lies in host memory already, as the results of a backend."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """As `Tensor` has it; so is all that follows."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """NumPy's name."""
        return str(self.values.dtype)

    def row(self, index: int) -> HostTensor:
        """A view of one entry of the leading axis."""
        return HostTensor(self.values[index])

    def numpy(self) -> NDArray[Any]:
        """The values themselves, not copied."""
        return self.values


@dataclass(frozen=True)
class _Part:
    """One half of a decoder: a graph for the first call and one for all others, and what passes through them."""

    name: str
    takes: str
    gives: str

    @property
    def roles(self) -> tuple[str, str]:
        return f"{self.name}_first", f"{self.name}_next"


_FEATURES = _Part("vae_features", "latents", "features")
_DECODER = _Part("vae_decoder", "features", "frames")


def decode(graphs: LoadedGraphs, plan: Plan, latents: Host) -> Iterator[Tensor]:
    """Latents `[C, F, h, w]` to frames u8 `[T, H, W, 3]`, chunk by chunk along T, whole or in tiles.

    Frames are where the backend keeps them, in tiles on the host, and valid until the next are asked for.
    """
    with closing(_calls(graphs, plan, _FEATURES, _slices(latents, graphs.bundle.manifest.frames))) as features:
        if plan.decoder_tiles > 1:
            held = [chunk.numpy() for chunk in features]
        else:
            with closing(_calls(graphs, plan, _DECODER, features)) as frames:
                yield from frames
            return
    yield from _in_tiles(graphs, plan, held)


def _slices(latents: Host, lengths: Lengths) -> Iterator[Host]:
    """What each call of the decoder takes, `[1, C, n, h, w]`."""
    first, following = lengths.latents_per_call
    starts = [0, *range(first, latents.shape[1], following)]
    for start, stop in zip(starts, [*starts[1:], latents.shape[1]], strict=True):
        yield latents[None, :, start:stop]


def _calls(graphs: LoadedGraphs, plan: Plan, part: _Part, values: Iterable[Tensor | Host]) -> Generator[Tensor]:
    """One half of the decoder, call after call."""
    feeds = ({part.takes: value} for value in values)
    with closing(call_by_call(graphs, plan, part.roles, feeds)) as calls:
        for outputs in calls:
            yield outputs[part.gives]


def _in_tiles(graphs: LoadedGraphs, plan: Plan, features: list[Host]) -> Iterator[Tensor]:
    """Tile after tile, each through all calls: so only the caches of one tile are in memory. While the last is decoded,
    the frames are finished one after the other."""
    geometry, video = graphs.bundle.manifest.geometry, plan.geometry
    scale, (rows, columns) = geometry.vae_scale_factor_spatial, plan.decoder_window
    tiles = tiles_of(plan.sizes.picture, plan.decoder_window, geometry.vae_decoder_halo)
    clip = np.empty((video.num_frames, video.height, video.width, 3), np.uint8)
    with ExitStack() as loaded:
        for role in TILED[: len(features)]:
            loaded.enter_context(graphs.use(role, plan))  # from one tile to the next
        for number, tile in enumerate(tiles, start=1):
            done = 0
            with closing(_calls(graphs, plan, _DECODER, (tile.of_features(each) for each in features))) as made:
                for chunk in made:
                    frames = clip[done : done + chunk.shape[0]]
                    done += len(frames)
                    part: Frames = chunk.numpy()
                    refuse_unlike(part, (rows * scale, columns * scale, 3))
                    if len(part) > len(frames):
                        raise ShapeError(f"the video must have {video.num_frames} frames; there are more")
                    tile.paste(part, frames, scale)
                    if number == len(tiles):
                        yield HostTensor(frames)
