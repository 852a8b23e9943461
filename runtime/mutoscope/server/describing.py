"""The parameters of a request as data, with a bundle's defaults and limits, for the page and for other clients.

The limits here are those that `planning.planner` holds requests to; a test compares the two.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from ..bundle.manifest import MAX_STEPS, Manifest
from ..codec import to_plain
from ..request import LORAS, OF_CLIPS, PICTURES, VideoRequest
from ..solvers.noise import SEED_MAX, SEED_MIN
from ..solvers.options import MAX_SHIFT, MIN_SHIFT, flow_shift_of
from ..values.frame_rates import MAX_FPS
from ..values.guidance import MAX_SCALE

KINDS = {
    "prompt": "text", "negative_prompt": "text", "guidance_scale": "number", "guidance_scale_2": "number",
    "flow_shift": "number", "fps": "rate", "scheduler": "choice", "sigmas": "levels",
    **dict.fromkeys(PICTURES, "picture"),
}  # fmt: skip


def describe_parameters(manifest: Manifest) -> list[dict[str, Any]]:
    """One object a parameter: name, type, help, default, minimum, maximum, step, choices, unit and whether required."""
    limits, defaults = _limits(manifest), _defaults(manifest)
    absent = {"prompt", "negative_prompt"} - set(manifest.followed)
    absent |= set(PICTURES) - set(manifest.followed)
    absent |= {*OF_CLIPS, *LORAS}  # nobody can send clips yet, and LoRAs have names of files and no field
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
            "choices": list(each.metadata["choices"]) or None,
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
    }
    for axis, name in enumerate(("height", "width")):
        sizes = manifest.geometry.sizes(axis)
        limits[name] = {"minimum": sizes[0], "maximum": sizes[-1], "step": sizes.step}
    if manifest.texts:
        longest = max(text.max_sequence_length for text in manifest.texts)
        limits["max_sequence_length"] = {"minimum": 1, "maximum": longest, "step": 1}
    return limits
