"""What a clip of a request decides where the request itself says nothing: length and rate, and which steps are made.

Knows requests, clips and the limits of a bundle. Knows nothing of graphs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

from ..bundle.manifest import Manifest
from ..clips import Clip, read_clip
from ..errors import RequestError
from ..request import PICTURES, VideoRequest
from ..values import checks
from ..values.byte_sizes import format_bytes
from ..values.frame_rates import parse_frame_rate
from .plan import GeometryPlan

STRENGTH = 0.8  # that of `WanVideoToVideoPipeline`


def with_clips_opened(request: VideoRequest, manifest: Manifest) -> VideoRequest:
    """The request with the clip that the video is made from opened, and with what follows from it.

    Raises:
        RequestError: it cannot be read, or is given with what cannot be beside it, or has too few frames.
    """
    if request.video is not None and "video" not in manifest.followed:
        raise RequestError(
            f"video is not a parameter of this bundle, which takes: {', '.join(manifest.followed)}. Leave it out, or "
            "export a text-to-video model again with the option video_input"
        )
    if request.strength is not None and request.video is None:
        raise RequestError(
            "strength is for a video that is given, and there is none; give one as video, or leave strength out"
        )
    if request.strength is not None and "strength" not in manifest.followed:
        raise RequestError("strength is not a parameter of this model; leave it out")
    if request.video is None:
        return request
    if beside := [name for name in PICTURES if getattr(request, name) is not None]:
        raise RequestError(f"a video is made from video or from {beside[0]}; give one of them")
    clip = read_clip(request.video, name="video")
    found: dict[str, Any] = {"video": clip}
    if "strength" in manifest.followed:
        found["strength"] = checks.real("strength", checks.either(request.strength, STRENGTH), minimum=0, maximum=1)
    if request.fps is None:
        found["fps"] = parse_frame_rate(clip.head.rate)
    if request.num_frames is None:
        found["num_frames"] = _length(clip, manifest)
    return replace(request, **found)


def bytes_of_clips(request: VideoRequest, geometry: GeometryPlan, host_limit_bytes: int) -> int:
    """What the clips of a request take in host memory, resized to the video, until it is made.

    Args:
        request: with clips opened.
        host_limit_bytes: as much memory as there is.

    Raises:
        RequestError: they would not fit.
    """
    clips = [name for name in ("video", "mask") if isinstance(getattr(request, name), Clip)]
    taken = len(clips) * 3 * geometry.num_frames * geometry.height * geometry.width
    if taken > host_limit_bytes:
        raise RequestError(
            f"{' and '.join(clips)}, resized to {geometry.num_frames} frames of {geometry.width}x{geometry.height}, "
            f"would take {format_bytes(taken)} of host memory, and {format_bytes(host_limit_bytes)} is available. Ask "
            "for a smaller height, width or num_frames"
        )
    return taken


def skipped_steps(strength: float | None, count: int) -> int:
    """How many of the steps are not made, as `get_timesteps` of the reference computes it; none without a clip.

    Raises:
        RequestError: none would be left.
    """
    if strength is None:
        return 0
    made = min(int(count * strength), count)
    if not made:
        least = math.ceil(1000 / count) / 1000
        raise RequestError(
            f"with strength {strength:g} none of the {count} steps is made; raise it to {least:g} at least, or raise "
            "num_inference_steps"
        )
    return count - made


def _length(clip: Clip, manifest: Manifest) -> int:
    """As many of its frames as a video may have, and at most those of a video where a request says nothing."""
    counts = manifest.frames.counts
    there = sum(1 for _ in islice(clip.frames(), manifest.defaults.num_frames))
    if there < counts[0]:
        raise RequestError(f"{clip.name} has {there} frames; a video of this model has {counts[0]} at least")
    return counts[(there - counts.start) // counts.step]
