"""Defaults that a model cannot serve are told, each with what it can."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from mutoscope.bundle.checks import impossible_defaults
from mutoscope.errors import BundleError


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"height": 33}, "the default height is 33, and the model takes 16 to 1024 in steps of 16"),
        ({"width": 1040}, "the default width is 1040, and the model takes 16 to 1024 in steps of 16"),
        ({"num_frames": 18}, "the default num_frames is 18, and the model takes 1 to 253 in steps of 4"),
        ({"scheduler": "heun"}, "no schedule can be made from the defaults: scheduler is 'heun'"),
        ({"sigmas": (1.0, 0.5)}, "no schedule can be made from the defaults: there are 2 sigmas for 4 steps"),
    ],
)
def test_each_default_that_cannot_be_is_named(make_bundle: Any, change: dict[str, Any], complaint: str) -> None:
    manifest = make_bundle().manifest
    defaults = msgspec.structs.replace(manifest.defaults, **change)
    (found,) = impossible_defaults(msgspec.structs.replace(manifest, defaults=defaults))
    assert found.startswith(complaint)


def test_a_bundle_whose_defaults_cannot_be_is_refused_as_a_bundle(make_bundle: Any) -> None:
    with pytest.raises(
        BundleError, match=r"default num_frames is 18, .*, export it again with overwrite: mutoscope export"
    ):
        make_bundle(defaults={"num_frames": 18})
