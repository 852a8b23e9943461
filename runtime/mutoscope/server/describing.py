"""The parameters of a request as data, with a bundle's defaults and limits, for the page and for other clients.

The limits here are those that `planning.planner` holds requests to; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from ..bundle.manifest import MAX_STEPS, Manifest
from ..codec import to_plain
from ..planning.given_clips import STRENGTH
from ..planning.going_on import can_go_on
from ..request import CLIPS, FILES, LORAS, OF_CLIPS, PICTURES, REFERENCES, VideoRequest
from ..solvers.noise import SEED_MAX, SEED_MIN
from ..solvers.options import MAX_SHIFT, MIN_SHIFT, flow_shift_of
from ..values.frame_rates import MAX_FPS
from ..values.guidance import MAX_SCALE

KINDS = {
    "prompt": "text", "negative_prompt": "text", "guidance_scale": "number", "guidance_scale_2": "number",
    "flow_shift": "number", "fps": "rate", "scheduler": "choice", "sigmas": "levels",
    **dict.fromkeys(PICTURES, "picture"), **dict.fromkeys(CLIPS, "clip"), "mask": "clip_or_picture",
    REFERENCES: "pictures", "strength": "number", "conditioning_scale": "scales", **dict.fromkeys(LORAS, "loras"),
}  # fmt: skip


def files_taken(manifest: Manifest) -> frozenset[str]:
    """The fields of files that a model takes."""
    return frozenset(FILES) & {*manifest.followed, *(["extend"] if can_go_on(manifest) else [])}


def describe_parameters(manifest: Manifest, loras: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One object a parameter: name, type, help, default, minimum, maximum, step, choices, unit and whether required.

    Args:
        loras: names of those that may be asked for; there is no such parameter where there are none.
    """
    limits, defaults = _limits(manifest), _defaults(manifest)
    absent = {"prompt", "negative_prompt", *PICTURES, *OF_CLIPS} - {*manifest.followed, *files_taken(manifest)}
    absent |= set(LORAS[len(manifest.experts) if loras else 0 :])
    needed = {image.name for image in manifest.images if image.required}
    needed |= {image.last for image in manifest.images if image.last is not None and image.last_required}
    absent |= {"guidance_scale_2"} if len(manifest.experts) == 1 else set()
    return [
        {
            "name": each.name,
            "type": KINDS.get(each.name, "integer"),
            "help": each.metadata["help"],
            "default": to_plain(defaults.get(each.name, _default(each))),
            "required": each.default is MISSING or each.name in needed,
            "minimum": None,
            "maximum": None,
            "step": None,
            "choices": list(loras if each.name in LORAS else each.metadata["choices"]) or None,
            "unit": each.metadata["unit"] or None,
            **limits.get(each.name, {}),
        }
        for each in fields(VideoRequest)
        if each.name not in absent
    ]


def _default(parameter: Field[Any]) -> Any:
    return None if parameter.default is MISSING else parameter.default


def _defaults(manifest: Manifest) -> dict[str, Any]:
    stored = manifest.defaults
    names = [each.name for each in fields(VideoRequest) if hasattr(stored, each.name)]
    found = {name: getattr(stored, name) for name in names}
    if stored.sigmas:
        found["num_inference_steps"] = len(stored.sigmas)
    found |= {"strength": STRENGTH, "conditioning_scale": 1}
    return found | {"flow_shift": flow_shift_of(stored.scheduler, manifest.default_scheduler)}


def _limits(manifest: Manifest) -> dict[str, dict[str, Any]]:
    counts = manifest.frames.counts
    limits: dict[str, dict[str, Any]] = {
        "num_frames": {"minimum": counts[0], "maximum": counts[-1], "step": counts.step},
        "num_inference_steps": {"minimum": 1, "maximum": MAX_STEPS, "step": 1},
        "guidance_scale": {"minimum": 0, "maximum": MAX_SCALE},
        "guidance_scale_2": {"minimum": 0, "maximum": MAX_SCALE},
        "seed": {"minimum": SEED_MIN, "maximum": SEED_MAX, "step": 1},
        "fps": {"minimum": 1, "maximum": MAX_FPS},
        "flow_shift": {"minimum": MIN_SHIFT, "maximum": MAX_SHIFT},
        "cache_interval": {"minimum": 1, "maximum": MAX_STEPS, "step": 1},
        "strength": {"maximum": 1},  # the least one depends on the steps, and is above 0
    }
    for axis, name in enumerate(("height", "width")):
        sizes = manifest.geometry.sizes(axis)
        limits[name] = {"minimum": sizes[0], "maximum": sizes[-1], "step": sizes.step}
    if manifest.texts:
        longest = max(text.max_sequence_length for text in manifest.texts)
        limits["max_sequence_length"] = {"minimum": 1, "maximum": longest, "step": 1}
    return limits
