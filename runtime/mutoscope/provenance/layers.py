"""The ways in which a file says that it is AI-generated, and whether it has them. Knows names, and no file."""

from __future__ import annotations

from dataclasses import dataclass

TAG = "tag"
WATERMARK = "watermark"
SIGNATURE = "signature"
LAYERS = (TAG, WATERMARK, SIGNATURE)

TURNED_OFF = "turned off"


@dataclass(frozen=True)
class Layer:
    """Whether a file has a layer, and where it is or why it is not there."""

    present: bool
    detail: str
