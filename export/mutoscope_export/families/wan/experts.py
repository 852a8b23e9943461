"""Which denoisers a Wan checkpoint has, one or two, and how the authors of Wan 2.2 A14B run their two.

Knows the index of a checkpoint and the configurations of its transformers. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from mutoscope.bundle.manifest import MAX_STEPS, Defaults, Expert

from ...checkpoint.checkpoint import Checkpoint

ROLES = {"transformer": "denoiser", "transformer_2": "denoiser_low"}
"""The role of the graph that is made from each component."""
_SECOND = "transformer_2"
_SHARED = ("in_channels", "out_channels", "patch_size", "text_dim", "rope_max_seq_len")  # decide about inputs and sizes

# The script that converts Wan's checkpoints writes this scheduler into each of them; whoever made one for another
# schedule, such as for four steps, wrote another.
_CONVERTED = ("UniPCMultistepScheduler", 3.0)
_AUTHORS_STEPS = 40


@dataclass(frozen=True)
class _Authors:
    """How the authors run two denoisers: the shift, and the guidance scale of each."""

    shift: float
    scale: float
    scale_2: float


# `wan/configs/wan_t2v_A14B.py` and `wan_i2v_A14B.py` of Wan-Video/Wan2.2.
_AUTHORS: Mapping[str, _Authors] = {
    "WanPipeline": _Authors(12.0, 4.0, 3.0),
    "WanImageToVideoPipeline": _Authors(5.0, 3.5, 3.5),
}


def experts_of(checkpoint: Checkpoint) -> tuple[Expert, ...]:
    """The denoisers, the first of a video first.

    The pipeline calls `transformer` from the timestep `boundary_ratio * num_train_timesteps` upwards, and below it
    `transformer_2`.

    Raises:
        ValueError: it has a second one without a boundary, or the reverse, or two that do not take the same inputs.
    """
    ratio, second = checkpoint.index.get("boundary_ratio"), checkpoint.index.get(_SECOND)
    if _SECOND not in checkpoint.classes:
        if ratio is not None or second not in (None, [None, None]):
            raise ValueError(
                f"boundary_ratio is {ratio!r} and {_SECOND} is {second!r} in a {checkpoint.pipeline}; supported is a "
                "WanPipeline or WanImageToVideoPipeline that has both, as Wan 2.2 A14B, or none of them"
            )
        return (Expert(),)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise ValueError(
            f"boundary_ratio is {ratio!r}, and there are two transformers; it must be a number between 0 and 1, which "
            "says when the second takes over, such as 0.875 for Wan 2.2 T2V-A14B or 0.9 for I2V-A14B"
        )
    above = ratio * checkpoint.scheduler.get("num_train_timesteps", MAX_STEPS)
    if above > MAX_STEPS:
        raise ValueError(
            f"the second transformer takes over at timestep {above:g}; a manifest has at most {MAX_STEPS}. "
            "Lower num_train_timesteps of the scheduler, if that is not what it was trained with"
        )
    _refuse_contradictions(checkpoint)
    scale = _AUTHORS[checkpoint.pipeline].scale_2
    return Expert(role=ROLES["transformer"], above=above), Expert(role=ROLES[_SECOND], guidance_scale=scale)


def defaults_of_two(defaults: Defaults, pipeline: str, scheduler: Mapping[str, Any]) -> Defaults:
    """The same as the authors of Wan 2.2 A14B have it; the guidance of the second denoiser is in its `Expert`."""
    authors = _AUTHORS[pipeline]
    converted = (scheduler["_class_name"], scheduler.get("flow_shift")) == _CONVERTED
    return msgspec.structs.replace(
        defaults,
        num_inference_steps=_AUTHORS_STEPS,
        guidance_scale=authors.scale,
        flow_shift=authors.shift if converted else None,
    )


def _refuse_contradictions(checkpoint: Checkpoint) -> None:
    first, second = (checkpoint.without_weights(component).config for component in ROLES)
    for option in _SHARED:
        if first[option] != second[option]:
            raise ValueError(
                f"{option} of transformer is {first[option]}, of {_SECOND} {second[option]}; they must be equal, "
                "because one video passes from the one to the other"
            )
