"""Which pictures and clips a Wan checkpoint takes, and whether its image encoder sees them as the runtime shows them.

Knows the configuration of the classes of Diffusers and transformers. Knows nothing of graphs, or of resizing.
"""

from __future__ import annotations

from typing import Any

from mutoscope.bundle.conditionings import (
    Conditioning,
    ControlConditioning,
    ImageConditioning,
    ImageEmbedsConditioning,
)
from mutoscope.pictures import CLIP_MEAN, CLIP_PIXELS, CLIP_STD

from ...checkpoint.checkpoint import Checkpoint
from . import control, first_frame, image_encoder, whole_clip
from .graph_sources import expands_timesteps, follows_control, pictures_of, takes_whole_clip

_PROCESSOR: dict[str, Any] = {  # of `CLIPImageProcessor`, as `mutoscope.pictures.for_clip` computes it
    "do_resize": True, "size": {"shortest_edge": CLIP_PIXELS}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": CLIP_PIXELS, "width": CLIP_PIXELS}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD),
}  # fmt: skip


def conditionings(checkpoint: Checkpoint) -> list[Conditioning]:
    """What a video of a checkpoint follows beside its text.

    Raises:
        ValueError: its image encoder is none that is supported, or does not fit its transformer.
        ExportError: a configuration file is missing or damaged.
    """
    if follows_control(checkpoint):
        layers = len(checkpoint.without_weights("transformer").config.vace_layers)
        return [
            ControlConditioning(
                name="video", mask="mask", references="reference_images", scale="conditioning_scale",
                role="vae_encoder_first", following="vae_encoder_next", feeds=control.FEEDS,
                scale_input=control.SCALE, layers=layers,
            )
        ]  # fmt: skip
    if expands_timesteps(checkpoint):
        fed: dict[str, Any] = {"feeds": first_frame.FEEDS, "given": first_frame.GIVEN, "required": False}
    elif takes_whole_clip(checkpoint):
        fed = {"feeds": whole_clip.FEEDS, "given": whole_clip.GIVEN, "following": "vae_encoder_next"}
    else:
        return []
    count = pictures_of(checkpoint)
    if takes_whole_clip(checkpoint) and count != 1:  # among the tokens of one picture is no place for a second
        fed |= {"last": "last_image", "last_required": count == 2}
    found: list[Conditioning] = [ImageConditioning(name="image", role="vae_encoder_first", **fed)]
    if count:
        _refuse_other_encoder(checkpoint, count)
        last = "last_image" if count == 2 else None
        role, feeds = "image_encoder", image_encoder.FEEDS
        found.append(ImageEmbedsConditioning(name="image", last=last, role=role, feeds=feeds))
    return found


def _refuse_other_encoder(checkpoint: Checkpoint, count: int) -> None:
    encoder, transformer = checkpoint.without_weights("image_encoder"), checkpoint.config("transformer")
    image_encoder.ImageEncoder(encoder)
    positions, tokens = transformer.get("pos_embed_seq_len"), image_encoder.tokens_of(encoder)
    if (width := encoder.config.hidden_size) != transformer["image_dim"]:
        raise ValueError(f"image_dim of the transformer is {transformer['image_dim']}, of the image encoder {width}")
    if positions not in (None, count * tokens):
        raise ValueError(
            f"pos_embed_seq_len of the transformer is {positions}; it must be {count * tokens}, as many as the image "
            "encoder makes tokens of two pictures"
        )
    given = checkpoint.config("image_processor", "preprocessor_config.json")
    other = {name: given[name] for name in _PROCESSOR if name in given and not _alike(given[name], _PROCESSOR[name])}
    if other:
        raise ValueError(
            f"the image processor has {other}; supported are the values of CLIP: "
            f"{ {name: _PROCESSOR[name] for name in other} }"
        )


def _alike(given: Any, known: Any) -> bool:
    """Also where a size is one number, as older versions of transformers wrote it."""
    return given in (known, CLIP_PIXELS if isinstance(known, dict) else known)
