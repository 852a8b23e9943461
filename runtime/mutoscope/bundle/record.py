"""What every part of a manifest is made of: a strict record, and the numbers that its fields may hold.

Knows ranges. Knows nothing of what a bundle holds.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from mutoscope_engines.device.device import ITEM_BYTES

from ..solvers.options import MAX_SHIFT, MIN_SHIFT
from ..values.guidance import MAX_SCALE

Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Single = Annotated[float, msgspec.Meta(ge=-1e38, le=1e38)]  # finite in float32
GuidanceScale = Annotated[float, msgspec.Meta(ge=0, le=MAX_SCALE)]
FlowShift = Annotated[float, msgspec.Meta(ge=MIN_SHIFT, le=MAX_SHIFT)]
Shape = tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | str, ...]
DType = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(ITEM_BYTES)})$")]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the manifest: immutable, and strict about names and types."""
