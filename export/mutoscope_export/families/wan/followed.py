"""What each video of a calibration follows beside its prompt, as the pipelines of Diffusers take it.

Knows the parameters of these pipelines, and in which ways a model may be used. Knows nothing of what is watched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ...checkpoint.checkpoint import Checkpoint
from ..family import Calibration
from .graph_sources import expands_timesteps, follows_control, pictures_of, takes_whole_clip

FROM_TEXT, FROM_PICTURES, WITH_CONTROL = "WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline"


def pipeline_of(checkpoint: Checkpoint, number: int) -> str:
    """The name of the class that makes the video of a prompt.

    Of a model that makes videos from text and from a picture, every second video is from a picture, the first included.
    """
    if follows_control(checkpoint):
        return WITH_CONTROL
    if takes_whole_clip(checkpoint) or (expands_timesteps(checkpoint) and number % 2 == 0):
        return FROM_PICTURES
    return FROM_TEXT


def followed(checkpoint: Checkpoint, calibration: Calibration, number: int) -> dict[str, Any]:
    """The keywords of that class that are pictures or clips, for the video of a prompt.

    A model that may be given a last picture gets one in every second video.

    Raises:
        RequestError: the clip cannot be read.
    """
    pipeline = pipeline_of(checkpoint, number)
    if pipeline == FROM_TEXT:
        return {}
    frames = [Image.fromarray(frame) for frame in calibration.clip(number)]
    if pipeline == WITH_CONTROL:
        return _control(frames, number)
    needs_last = pictures_of(checkpoint) == 2
    may_have_last = takes_whole_clip(checkpoint) and pictures_of(checkpoint) == 0 and number % 2 == 1
    last = {"last_image": frames[-1]} if len(frames) > 1 and (needs_last or may_have_last) else {}
    return {"image": frames[0], **last}


def _control(frames: list[Image.Image], number: int) -> dict[str, Any]:
    """In turn: all that control can be, a clip alone, a reference alone, and nothing.

    The middle of the clip is made anew where it has a mask.
    """
    height, width = frames[0].height, frames[0].width
    mask = np.zeros((height, width, 3), np.uint8)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = 255
    clip, reference = {"video": frames}, {"reference_images": frames[:1]}
    masked = {**clip, "mask": [Image.fromarray(mask)] * len(frames)}
    return ({**masked, **reference}, clip, reference, {})[number % 4]
