"""The name of a video before it is made: a hash of everything that decides it. Knows plans."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

from ..codec import to_plain
from ..planning.plan import Plan
from ..request import FILES, LORAS, OutputOptions, VideoRequest
from ..version import __version__

# Where a video is made and in how much memory; with the setting below, they change no more than its last bits.
DECIDE_NOTHING = ("placements", "memory", "bundle", "notes")


def setting_of(plan: Plan, ending: str, output: OutputOptions) -> dict[str, Any]:
    """What decides a video and is the same for a whole batch: version, bundle, backend, precision and kind of file."""
    return {
        "mutoscope": __version__,
        "bundle_sha256": plan.bundle_sha256,
        "backend": plan.placements.backend,
        "precision": plan.placements.precision,
        "stages": dict(plan.placements.stages),
        "ending": ending,
        "output": to_plain(asdict(output)),
    }


def key_of(setting: dict[str, Any], plan: Plan) -> str:
    """64 hexadecimal digits, the same on every machine. A repeat has another seed, and so another key."""
    names = [part.name for part in fields(plan) if part.name not in DECIDE_NOTHING]
    decides = {name: to_plain(getattr(plan, name)) for name in names}
    decides["loras"] = _loras(plan)
    return digest([setting, decides])


def _loras(plan: Plan) -> list[dict[str, Any]]:
    """Without the names of their files, which may be renamed."""
    return [{**asdict(lora), "file": ""} for lora in plan.loras]


def texts_of(plan: Plan) -> str:
    """The same for videos whose prompts, other conditions and LoRAs are the same."""
    return digest([to_plain(plan.conditions), _loras(plan)])


def seed_of(request: VideoRequest, name: str | None) -> int:
    """A seed from 0 to 2^32 - 1 for a job that has none: the same whenever the same job is read again.

    Args:
        request: the job's.
        name: its id, where it has one of its own.
    """
    files = (*FILES, *LORAS)  # which may be renamed
    said = {key: value for key, value in request.to_dict().items() if key not in files}
    return int(digest([said, name])[:8], 16)


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its names."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
