"""What a Wan checkpoint is: its components, and what the manifest says of it.

Knows the configuration of the classes of Diffusers and transformers. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from mutoscope.bundle.conditionings import TextConditioning, VideoConditioning
from mutoscope.bundle.manifest import Defaults, Draw, Frames, Geometry
from mutoscope.solvers.options import CLASSES, WHOLE_TIMESTEPS, from_diffusers
from transformers import UMT5EncoderModel

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.tokenizer import READS_SERIALIZED, settings_of
from ...checkpoint.validation import NONE
from ..family import Description
from . import denoiser, pictures, text, vae
from .experts import ROLES, defaults_of_two, experts_of
from .graph_sources import PRECISIONS, expands_timesteps, follows_control, kind_of, pictures_of, takes_whole_clip
from .precision_policy import CALIBRATED

NAME = "wan"
_NETWORKS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": (
        "transformers.T5TokenizerFast", "transformers.T5Tokenizer", "transformers.AutoTokenizer", READS_SERIALIZED,
    ),
    "text_encoder": ("transformers.UMT5EncoderModel",),
    "transformer": ("diffusers.WanTransformer3DModel",),
    "vae": ("diffusers.AutoencoderKLWan",),
}  # fmt: skip
_DMD = "WanDMDPipeline"
_TWO_OR_ONE: Mapping[str, tuple[str, ...]] = {
    **_NETWORKS,
    "transformer_2": (NONE, *_NETWORKS["transformer"]),
    "scheduler": tuple(f"diffusers.{name}" for name in CLASSES),
}
PIPELINES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "WanPipeline": _TWO_OR_ONE,
    "WanImageToVideoPipeline": {**_TWO_OR_ONE, "image_encoder": (NONE, "transformers.CLIPVisionModel")},
    "WanVACEPipeline": {
        **_TWO_OR_ONE,
        "transformer": ("diffusers.WanVACETransformer3DModel",),
        "transformer_2": (NONE,),
    },
    _DMD: _NETWORKS,
}
_DEFAULTS = Defaults(
    height=480, width=832, num_frames=81, num_inference_steps=50, guidance_scale=5.0, fps=16, negative_prompt="",
    scheduler="",
)  # fmt: skip
# `wan_ti2v_5B.py` of the authors, whose default is the wide one of two sizes.
_TI2V_DEFAULTS = msgspec.structs.replace(_DEFAULTS, height=704, width=1280, num_frames=121, fps=24)
# Those of the documentation of Diffusers.
_FLF2V_DEFAULTS = msgspec.structs.replace(_DEFAULTS, height=720, width=1280, guidance_scale=5.5)
# FastVideo's models by distribution matching. Its `DmdDenoisingStage` takes no guidance, and of the levels of a
# flow-matching scheduler with shift 8, which it makes itself, those next to its timesteps 1000, 757 and 522.
_DMD_DEFAULTS: Mapping[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "sigmas": (1.0, 0.28, 0.12)}
_DMD_SCHEDULER = {"_class_name": "FlowMatchLCMScheduler", "shift": 8.0, WHOLE_TIMESTEPS: True}

_MAX_SEQUENCE_LENGTH = 512  # of `WanPipeline`


def describe(checkpoint: Checkpoint) -> Description:
    """What the manifest of a Wan checkpoint says.

    Raises:
        ValueError: it is of a kind of Wan that is not supported, or its files contradict each other.
        ExportError: its tokenizer cannot be used.
    """
    encoder, autoencoder = map(checkpoint.without_weights, ("text_encoder", "vae"))
    text.TextEncoder(encoder)
    experts = experts_of(checkpoint)
    if len(experts) > 1 and expands_timesteps(checkpoint):
        raise ValueError(
            "it has two transformers, and expand_timesteps is true; supported is one of them, as in Wan 2.2 T2V-A14B "
            "or in Wan 2.2 TI2V-5B"
        )
    for component in list(ROLES)[: len(experts)]:
        transformer = checkpoint.without_weights(component)
        kind_of(checkpoint).step(transformer)
        _refuse_contradictions(transformer, encoder.config, autoencoder.config)
    if follows_control(checkpoint):
        _refuse_other_control(transformer.config, autoencoder.config)
    geometry = _geometry(transformer, autoencoder)
    scheduler = scheduler_of(checkpoint)
    defaults = _TI2V_DEFAULTS if expands_timesteps(checkpoint) else _DEFAULTS
    if pictures_of(checkpoint) == 2:
        defaults = _FLF2V_DEFAULTS
    changes = _DMD_DEFAULTS if checkpoint.pipeline == _DMD else {}
    if len(experts) > 1:
        defaults = defaults_of_two(defaults, checkpoint.pipeline, scheduler)
    return Description(
        geometry=geometry,
        frames=_frames(geometry),
        conditionings=(_prompt(checkpoint, encoder), *pictures.conditionings(checkpoint), *_clip(checkpoint)),
        draws=(Draw(input="latents", shape=(geometry.latent_channels, "F", "h", "w")),),
        defaults=msgspec.structs.replace(defaults, scheduler=from_diffusers(scheduler), **changes),
        scheduler=scheduler,
        precisions=PRECISIONS,
        experts=experts,
        policies=CALIBRATED,
    )


def scheduler_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of the scheduler that a pipeline runs with, which is not always the checkpoint's.

    Raises:
        ExportError: the checkpoint's is missing or damaged.
    """
    return dict(_DMD_SCHEDULER) if checkpoint.pipeline == _DMD else checkpoint.scheduler


def _refuse_contradictions(network: WanTransformer3DModel, encoder: Any, autoencoder: Any) -> None:
    """Sizes that two configuration files, or two lines of one, must agree on."""
    transformer, latents = network.config, denoiser.latent_channels(network)
    of_clip = 2 * latents + autoencoder.scale_factor_temporal if transformer.in_channels != latents else latents
    patch = autoencoder.patch_size or 1
    spatial = 2 ** (len(autoencoder.dim_mult) - 1) * patch
    for first, one, second, other in (
        ("text_dim of the transformer", transformer.text_dim, "d_model of the text encoder", encoder.d_model),
        ("out_channels of the transformer", latents, "z_dim of the VAE", autoencoder.z_dim),
        ("in_channels of the transformer", transformer.in_channels, "what out_channels and the VAE make it", of_clip),
        ("scale_factor_spatial of the VAE", autoencoder.scale_factor_spatial, "that of its layers", spatial),
        ("scale_factor_temporal of the VAE", autoencoder.scale_factor_temporal, "that of its layers",
         2 ** sum(autoencoder.temperal_downsample)),
        ("out_channels of the VAE", autoencoder.out_channels, "three colours times patch_size squared", 3 * patch**2),
        ("length of latents_mean", len(autoencoder.latents_mean), "z_dim of the VAE", autoencoder.z_dim),
        ("length of latents_std", len(autoencoder.latents_std), "z_dim of the VAE", autoencoder.z_dim),
    ):  # fmt: skip
        if one != other:
            raise ValueError(f"{first} is {one}, {second} {other}; they must be equal")


def _refuse_other_control(transformer: Any, autoencoder: Any) -> None:
    """What `WanVACEPipeline` makes of a clip and its mask: two latents, and the pixels of the mask in place of one."""
    made = 2 * autoencoder.z_dim + autoencoder.scale_factor_spatial**2
    if transformer.vace_in_channels != made or autoencoder.patch_size not in (None, 1):
        raise ValueError(
            f"vace_in_channels of the transformer is {transformer.vace_in_channels}, and the VAE, with patch_size "
            f"{autoencoder.patch_size}, makes a control of {made} channels; supported is a VAE without patches whose "
            "control has as many channels as the transformer takes, such as 96 in Wan 2.1 VACE"
        )


def _geometry(transformer: WanTransformer3DModel, autoencoder: AutoencoderKLWan) -> Geometry:
    return Geometry(
        latent_channels=autoencoder.config.z_dim,
        vae_scale_factor_spatial=autoencoder.config.scale_factor_spatial,
        vae_scale_factor_temporal=autoencoder.config.scale_factor_temporal,
        patch_size=tuple(transformer.config.patch_size),
        max_patches=transformer.config.rope_max_seq_len,
        vae_decoder_halo=vae.DecoderChunk(autoencoder, first=True).halo(),
    )


def _frames(geometry: Geometry) -> Frames:
    """The first frame has a latent of its own, and so have each `scale` others; whole patches of latents."""
    scale, (patch, *_) = geometry.vae_scale_factor_temporal, geometry.patch_size
    first, step = scale * (patch - 1) + 1, scale * patch
    return Frames(first=first, step=step, most=first + step * (geometry.max_patches - 1), frames_per_call=(1, scale))


def _clip(checkpoint: Checkpoint) -> tuple[VideoConditioning, ...]:
    """The video that a text-to-video model may begin from, where its bundle is to have the encoder for one."""
    if not checkpoint.video_input or takes_whole_clip(checkpoint) or follows_control(checkpoint):
        return ()
    return (VideoConditioning(name="video", role="vae_encoder_first", following="vae_encoder_next"),)


def _prompt(checkpoint: Checkpoint, encoder: UMT5EncoderModel) -> TextConditioning:
    settings = settings_of(checkpoint.tokenizer(), checkpoint.root / "tokenizer", encoder.config.vocab_size)
    return TextConditioning(
        name="prompt",
        role="text_encoder",
        feeds=text.FEEDS,
        max_sequence_length=min(_MAX_SEQUENCE_LENGTH, settings.max_tokens),
        pad_token_id=settings.pad_token_id,
        negative="negative_prompt",
        cleaning="ftfy-html-spaces",  # `prompt_clean` of `WanPipeline`
    )
