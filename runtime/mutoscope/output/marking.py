"""What one file gets of the tag and the watermark. Knows formats, and how neither is made."""

from __future__ import annotations

from collections.abc import Iterator

from ..provenance.layers import TURNED_OFF, Layer
from ..provenance.watermark import BITS, Marker, why_none
from . import Format
from .frames import Frames, VideoHeader


def tag_layer(kind: Format) -> Layer:
    """Every format has it that has room for words."""
    return Layer(False, "the format has no room for one") if kind.raw else Layer(True, "in the metadata")


class Marking:
    """The watermark of one file, or the reason why it has none."""

    def __init__(self, kind: Format, header: VideoHeader, *, wanted: bool) -> None:
        if not wanted:
            self._why_none = TURNED_OFF
        elif kind.raw:
            self._why_none = "the format keeps the frames as they were made"
        else:
            self._why_none = why_none(header.height, header.width)
        self._marker = None if self._why_none else Marker(header.height, header.width)

    def frames(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        """The same chunks, with the watermark where there is one."""
        return chunks if self._marker is None else self._marker.marked(chunks)

    def layer(self) -> Layer:
        """What came of it, once all frames are written. Frames that are black or white all over can hide none."""
        if self._marker is None:
            return Layer(False, self._why_none)
        reading = self._marker.read()
        if not reading.found:
            return Layer(False, f"these frames cannot hold one: {reading.bits} of its {BITS} bits are readable")
        return Layer(True, f"{reading.bits} of {BITS} bits before the codec")
