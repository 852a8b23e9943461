"""What is true of one model line and of no other. A family is one file here and one row in this table."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from ..bundle.manifest import Geometry
from ..errors import BundleError

FAMILIES = {"wan": "mutoscope.families.wan"}


class Family(Protocol):
    """What the runtime asks of a family's module."""

    def clean_prompt(self, text: str) -> str:
        """The prompt as the reference hands it to its tokenizer."""
        ...

    def latent_frames(self, num_frames: int, temporal_scale: int) -> int:
        """F for T frames."""
        ...

    def frame_counts(self, geometry: Geometry) -> range:
        """Every T that a video may have."""
        ...


def load_family(name: str) -> Family:
    """The family a bundle names.

    Raises:
        BundleError: this installation does not know it.
    """
    if name not in FAMILIES:
        raise BundleError(
            f"the bundle is of the family {name!r}; this Mutoscope knows: {', '.join(FAMILIES)}. Install a newer one"
        )
    return cast(Family, import_module(FAMILIES[name]))
