"""What a file is told of a video may come from anybody, and is checked."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from mutoscope.errors import RequestError
from mutoscope.output.video import write_video

from tests.runtime.clips import leftovers, make_header, scene


@pytest.mark.parametrize(("fps", "rate"), [(8, Fraction(8)), (12.5, Fraction(25, 2))])
@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.webp", "out.npy", "frames"])
def test_a_rate_may_be_any_number_and_is_kept_exactly(tmp_path: Path, name: str, fps: float, rate: Fraction) -> None:
    header = replace(make_header(), fps=fps)
    assert header.fps == rate
    write_video(tmp_path / name, [scene()], header)
    assert leftovers(tmp_path) == [name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fps": 0}, "fps must be a number or a Fraction from 1 to 240"),
        ({"fps": "24"}, r"such as fps=Fraction\(24, 1\); got '24'"),
        ({"height": 0}, "height must be a whole number from 1"),
        ({"num_frames": 1.5}, "num_frames must be a whole number"),
        ({"recipe": "ü"}, "recipe must be ASCII"),
    ],
)
def test_a_header_that_no_video_has_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        replace(make_header(), **change)
