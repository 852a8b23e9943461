"""Which checkpoints get the encoder for a video, and only where it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope.bundle.conditionings import VideoConditioning
from mutoscope.errors import RequestError
from mutoscope_export.checkpoint.replacements import Replacements
from mutoscope_export.errors import ExportError
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions

ENCODERS = ["vae_encoder_first", "vae_encoder_next"]


def encoders_of(checkpoint: Path, *, video_input: bool) -> tuple[list[str], list[str]]:
    """The roles that encode clips or pictures, and the fields of a request beside its texts."""
    opened = open_checkpoint(checkpoint, Replacements(video_input=video_input))
    roles = [source.role for source in opened.family.sources(opened, ["fp32", "bf16"])]
    fields = [name for each in opened.description.conditionings for name in each.fields if "prompt" not in name]
    return [role for role in roles if role in ENCODERS], fields


def test_a_text_to_video_model_has_the_encoder_where_it_is_asked_for(least_checkpoint: Path) -> None:
    assert encoders_of(least_checkpoint, video_input=False) == ([], [])
    assert encoders_of(least_checkpoint, video_input=True) == (ENCODERS, ["video", "strength"])


def test_one_that_may_take_a_picture_then_takes_both(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ti2v", expand_timesteps=True)
    assert encoders_of(checkpoint, video_input=False) == (ENCODERS[:1], ["image"])
    assert encoders_of(checkpoint, video_input=True) == (ENCODERS, ["image", "video", "strength"])
    opened = open_checkpoint(checkpoint, Replacements(video_input=True))
    [video] = [each for each in opened.description.conditionings if isinstance(each, VideoConditioning)]
    assert video.roles == tuple(ENCODERS)


def test_an_image_to_video_model_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "i2v", image_to_video=True)
    with pytest.raises(ExportError, match="i2v makes no video of another, so video_input is not for it"):
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportOptions(video_input=True))
    assert not (tmp_path / "bundle").exists()


def test_the_option_is_a_switch(least_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="video_input must be True or False"):
        export_checkpoint(least_checkpoint, tmp_path / "bundle", ExportOptions(video_input="yes"))  # type: ignore[arg-type]
