"""How much of a video's recipe its file tells to everybody. Knows headers and levels. Knows no container."""

from __future__ import annotations

import json
from dataclasses import replace

from mutoscope_engines.names import no_such

from ..errors import RequestError
from .frames import VideoHeader

FULL, MINIMAL, NONE = "full", "minimal", "none"
LEVELS = (FULL, MINIMAL, NONE)

# Enough to find the software, the model and the noise again; nothing that the person wrote.
MINIMAL_FACTS = ("mutoscope", "bundle_sha256", "seed")


def at_level(header: VideoHeader, level: str) -> VideoHeader:
    """The header with as much of its title and recipe as a level of `LEVELS` lets out.

    "full" is all of it, the prompt too. "minimal" keeps `MINIMAL_FACTS` of a recipe that is a JSON object. "none" keeps
    nothing. That a video is AI-generated is said at every level, by the writers themselves.

    Raises:
        RequestError: there is no such level, or the header is none.
    """
    if not isinstance(header, VideoHeader):
        raise RequestError(f"the header must be a VideoHeader, such as plan.header; got {type(header).__name__}")
    refuse_unknown_level(level)
    if level == FULL:
        return header
    return replace(header, title="", recipe="" if level == NONE else _minimal(header.recipe))


def refuse_unknown_level(level: str) -> None:
    """
    Raises:
        RequestError: there is no such level; says which there are.
    """
    if level not in LEVELS:
        raise RequestError(no_such("metadata level", level, LEVELS))


def _minimal(recipe: str) -> str:
    try:
        facts = json.loads(recipe)
    except ValueError:  # none, or a text of the caller's own, which may say anything
        return ""
    kept = {name: facts[name] for name in MINIMAL_FACTS if name in facts} if isinstance(facts, dict) else {}
    return json.dumps(kept) if kept else ""
