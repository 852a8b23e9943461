"""What a video follows: a file for each kind of conditioning, which makes inputs of the denoiser of it.

The table below has a row for each kind that a manifest may name; importing it imports none of them.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import BundleError
from ..request import VideoRequest

if TYPE_CHECKING:
    from ..bundle.bundle import Bundle
    from .base import Condition

CONDITIONS = {  # by the record of the manifest
    "TextConditioning": "mutoscope.conditions.text:TextCondition",
    "NumberConditioning": "mutoscope.conditions.number:NumberCondition",
    "ImageConditioning": "mutoscope.conditions.image:ImageCondition",
    "ControlConditioning": "mutoscope.conditions.control:ControlCondition",
    "ImageEmbedsConditioning": "mutoscope.conditions.image_embeds:ImageEmbedsCondition",
    "VideoConditioning": "mutoscope.conditions.video:VideoCondition",
}


def load_conditions(bundle: Bundle) -> tuple[Condition, ...]:
    """The conditions of a bundle, in its order.

    Raises:
        BundleError: a file that one of them needs cannot be read, or it asks for what this Mutoscope does not know.
    """
    known = [field.name for field in fields(VideoRequest)]
    loaded = []
    for about in bundle.manifest.conditionings:
        if unknown := [name for name in about.fields if name not in known]:
            raise BundleError(
                f"the bundle needs the parameter {unknown[0]!r}, and this version of Mutoscope does not have it; it "
                f"has: {', '.join(known)}. Install a newer Mutoscope"
            )
        module, _, name = CONDITIONS[type(about).__name__].partition(":")
        loaded.append(getattr(import_module(module), name)(about, bundle))
    return tuple(loaded)
