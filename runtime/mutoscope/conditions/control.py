"""A clip that controls the video, a mask of what is to be made in it, and pictures of what is to be seen in it.

Knows what `WanVACEPipeline` makes of them before its network sees them. Knows nothing of files, or of what a model does
with its control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from mutoscope_engines.session import Feeds, Host
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..bundle.conditionings import ControlConditioning
from ..bundle.manifest import Defaults
from ..clips import Clip, read_clip, read_clip_or_picture
from ..errors import RequestError
from ..pictures import Picture, letterboxed, read_pictures
from ..values import checks
from .base import FRAMES, GREY, Condition, Settled, UseGraphs, VideoSize, joined
from .shown import Shown, shown, shown_whole

_VIDEO, _MASK, _REFERENCES, _SIZE = "video", "mask", "references", "size"  # what is encoded, by name
_MADE_FROM = 128  # the least level of a mask that says that a pixel is to be made
_MOST_SCALE = 100.0

Calls = Sequence[Mapping[str, Host]]  # what the encoder gave, call after call


class ControlCondition(Condition):
    """A clip twice through the encoder: with what is kept of it, and with what is made anew, each grey elsewhere.

    Without a mask all of the clip is the latter, and without a clip both are grey. The latents of references come
    before those of the clip, the last reference first.
    """

    def __init__(self, about: ControlConditioning, bundle: Bundle) -> None:
        self._about = about
        self._frames = bundle.manifest.frames
        self._spatial = bundle.manifest.geometry.vae_scale_factor_spatial

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        about = self._about
        video, mask = (getattr(request, name) for name in (about.name, about.mask))
        if mask is not None and video is None:
            raise RequestError(f"{about.mask} says which parts of {about.name} are made anew; give {about.name}, too")
        asked, scales = self._scales(getattr(request, about.scale))
        feeds: dict[str, NDArray[Any]] = {
            about.scale_input: scales, _SIZE: np.array([size.num_frames, size.height, size.width]),
        }  # fmt: skip
        facts: dict[str, Any] = {}
        notes: list[str] = []
        references = read_pictures(getattr(request, about.references) or (), name=about.references)
        placed = [letterboxed(each.pixels, size.height, size.width, self._spatial, name=about.references)
                  for each in references]  # fmt: skip
        if video is not None:
            opened = read_clip(video, name=about.name)
            over = None if mask is None else read_clip_or_picture(mask, name=about.mask)
            if over is not None:
                self._refuse_other_size(over, opened)  # before any frame of either is decoded
            clip, on_rest = shown_whole(opened, size, self._frames)
            feeds[_VIDEO], facts[about.name] = clip.frames, clip.identity
            notes += on_rest
            if over is not None:
                masked = shown(over, size)
                self._refuse_other_length(masked, clip)
                notes += over.notes if isinstance(over, Picture) else ()
                feeds[_MASK], facts[about.mask] = np.broadcast_to(masked.frames, clip.frames.shape), masked.identity
        if references:
            feeds[_REFERENCES] = np.stack(placed)
            facts[about.references] = ", ".join(each.identity for each in references)
            notes += [note for each in references for note in each.notes]
        return Settled(feeds, facts=facts | {about.scale: asked}, notes=tuple(notes), roles=about.roles)

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        about, feeds = self._about, settled.feeds
        kept = run(about.roles, self._chunks(feeds, made=False))
        made = run(about.roles, self._chunks(feeds, made=True)) if _VIDEO in feeds else kept
        references = [run(about.roles, [{FRAMES: frame[None]}]) for frame in feeds.get(_REFERENCES, ())]
        control = {name: self._control(output, feeds, kept, made, references) for output, name in about.feeds.items()}
        return {**control, about.scale_input: feeds[about.scale_input]}

    def _control(
        self, output: str, feeds: Mapping[str, Host], kept: Calls, made: Calls, references: Sequence[Calls]
    ) -> Host:
        """All of the control, f32 `[2 C + s * s, F, h, w]`, references first."""
        latents = np.concatenate([joined(kept, output), joined(made, output)])
        parts = [np.concatenate([latents, self._mask_channels(feeds.get(_MASK), latents.shape[1:])])]
        for calls in references:
            reference = joined(calls, output)
            nothing = np.zeros((len(parts[0]) - len(reference), *reference.shape[1:]), np.float32)
            parts.insert(0, np.concatenate([reference, nothing]))
        return np.concatenate(parts, axis=1)

    def _mask_channels(self, mask: NDArray[np.uint8] | None, shape: Sequence[int]) -> NDArray[np.float32]:
        """For each latent pixel those of the mask that it stands for, `[s * s, F, h, w]`; greys stay greys.

        Of the frames that a latent frame stands for, it has one: the one that PyTorch's "nearest-exact" takes.
        """
        count, rows, columns = shape
        scale = self._spatial
        if mask is None:
            return np.ones((scale * scale, count, rows, columns), np.float32)
        middles = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(len(mask) / count)
        chosen = mask[np.minimum(middles.astype(np.int64), len(mask) - 1), :, :, 0]
        shares = ((chosen.astype(np.float32) / 255 * 2 - 1) + 1) / 2  # rounded as in Diffusers
        cells = shares.reshape(count, rows, scale, columns, scale).transpose(2, 4, 0, 1, 3)
        return np.ascontiguousarray(cells.reshape(scale * scale, count, rows, columns))

    def _chunks(self, feeds: Mapping[str, Host], *, made: bool) -> Iterator[Feeds]:
        """The frames of each call, f32 `[T, H, W, 3]`, of what is made anew, or of what is kept."""
        num_frames, height, width = feeds[_SIZE]
        for start, stop in self._frames.slices(int(num_frames)):
            if _VIDEO not in feeds:
                yield {FRAMES: np.full((stop - start, height, width, 3), GREY, np.float32)}
                continue
            masked = feeds[_MASK][start:stop] >= _MADE_FROM if _MASK in feeds else np.True_
            yield {FRAMES: np.where(masked == made, feeds[_VIDEO][start:stop].astype(np.float32), np.float32(GREY))}

    def _scales(self, given: Any) -> tuple[Any, NDArray[np.float32]]:
        """What was asked for, one number or one for each layer, and f32 `[layers]`."""
        name, layers = self._about.scale, self._about.layers
        if given is None or isinstance(given, Real):
            asked = checks.real(name, 1.0 if given is None else given, minimum=0, maximum=_MOST_SCALE)
            return asked, np.full(layers, asked, np.float32)
        each = tuple(checks.real(name, scale, minimum=0, maximum=_MOST_SCALE) for scale in checks.numbers(name, given))
        if len(each) != layers:
            raise RequestError(
                f"{name} has {len(each)} numbers; give one number, or one for each of the {layers} layers of this "
                "model that follow the control"
            )
        return each, np.array(each, np.float32)

    def _refuse_other_size(self, mask: Clip | Picture, video: Clip) -> None:
        about, head = self._about, video.head
        rows, columns = mask.pixels.shape[:2] if isinstance(mask, Picture) else (mask.head.height, mask.head.width)
        if (rows, columns) != (head.height, head.width):
            raise RequestError(
                f"{about.mask} has {columns}x{rows} pixels, and {about.name} {head.width}x{head.height}; give a mask "
                "of the same size"
            )

    def _refuse_other_length(self, mask: Shown, video: Shown) -> None:
        about = self._about
        if len(mask.frames) > 1 or len(video.frames) == 1:
            if (len(mask.frames), mask.goes_on) == (len(video.frames), video.goes_on):
                return
        elif not mask.goes_on:  # a picture, for all frames
            return
        counts = [f"more than {len(each.frames)}" if each.goes_on else len(each.frames) for each in (mask, video)]
        raise RequestError(
            f"{about.mask} has {counts[0]} frames, and {about.name} {counts[1]}; give a mask with as many frames, or "
            "one picture for all of them"
        )
