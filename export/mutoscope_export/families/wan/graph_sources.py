"""Which graphs come of a Wan checkpoint, in which precisions, and what each is compared with.

Knows the modules beside it and the passes. Of configuration files it knows what decides between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from mutoscope_engines.precisions import ON_GPU, base_precision
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from ...checkpoint.checkpoint import Checkpoint
from ...graphs.parts import Blocks, Cut, made_of
from ...graphs.trace import Pass, SymbolicValue
from ...passes.attention_in_tiles import attention_in_tiles
from ...passes.bias_in_turn import bias_in_turn
from ...passes.convolve_over_time import convolve_over_time
from ...passes.fewer_products_over_time import fewer_products_over_time
from ...passes.half_tables import half_tables
from ...passes.int8 import DynamicInt8
from ...passes.norm_from_half import norm_from_half
from ...passes.project_in_turn import project_in_turn
from ...passes.slice_feed_forward import SliceFeedForward
from ...passes.without_float32_gemm import without_float32_gemm
from ..decoding import decode
from ..family import Call, Form, GraphSource
from . import (
    control,
    denoiser,
    first_frame,
    image_encoder,
    image_tokens,
    own_classes,
    text,
    vae,
    vae_encoder,
    whole_clip,
)
from .experts import ROLES
from .precision_policy import CALIBRATED

_VAE_PARTS: Mapping[str, type[vae.Chunk]] = {"vae_features": vae.FeatureChunk, "vae_decoder": vae.DecoderChunk}

# In int8 it has a graph of its own, because it has most of the weights: 5.7 of 7.1 billion in Wan 2.1 1.3B.
_ENCODER_PASSES: Mapping[str, tuple[Pass, ...]] = {
    "int8": (half_tables, DynamicInt8(text.QUANTIZABLE_WEIGHTS, 2)),
    "bf16": (bias_in_turn,),
    "fp16": (bias_in_turn,),
}
# What runs on GPUs alone is written for them: the least memory, where the fp32 graph is written for speed on CPUs.
_DENOISER_ON_GPUS: tuple[Pass, ...] = (SliceFeedForward(3), project_in_turn, norm_from_half)
_DENOISER_PASSES: Mapping[str, tuple[Pass, ...]] = {
    "fp32": (),
    "int8": (DynamicInt8(denoiser.QUANTIZABLE_WEIGHTS), attention_in_tiles),
    "bf16": _DENOISER_ON_GPUS,
    "bf16-cpu": (),
    "fp16": (*_DENOISER_ON_GPUS, without_float32_gemm),
    **{name: _DENOISER_ON_GPUS for name in CALIBRATED},  # after those that follow from its calibration
}
_DECODER_PASSES: Mapping[str, tuple[Pass, ...]] = {
    "fp32": (fewer_products_over_time,),
    "bf16-cpu": (fewer_products_over_time,),
    "bf16": (convolve_over_time,),
    "fp16": (convolve_over_time,),
}
PRECISIONS = tuple(_DENOISER_PASSES)
IMAGE_ENCODER = "image_encoder"  # the component, and the role of its graph
_CPU_PRECISIONS = tuple(name for name in PRECISIONS if name not in ON_GPU)
# What text and pictures alone decide is computed once a video. On GPUs it hardly takes time, and would take memory.
_DENOISER_CUTS: Mapping[str, Cut] = dict.fromkeys(
    _CPU_PRECISIONS, made_of(*text.FEEDS.values(), *image_encoder.FEEDS.values())
)
# In the names of their weights. A VACE block has no number of its own, and is where the layer is that takes its hint.
BLOCKS = {"denoiser": r"(?<!vace_)blocks\.(\d+)\.", "text_encoder": r"block\.(\d+)\."}


@dataclass(frozen=True)
class DenoiserKind:
    """What the denoiser of a checkpoint computes, and its inputs: names and shapes, an example of given sizes, and
    those that stand for one call of the network by Diffusers, but for the text.
    """

    step: type[denoiser.DenoiserStep]
    inputs: Callable[[WanTransformer3DModel], list[SymbolicValue]]
    example: Callable[[WanTransformer3DModel, Mapping[str, int], int], dict[str, Tensor]]
    recorded: Callable[[Call], dict[str, Tensor]]


_PLAIN = DenoiserKind(
    denoiser.DenoiserStep, denoiser.symbolic_inputs, denoiser.example_inputs, denoiser.recorded_inputs
)
_FIRST_FRAME = DenoiserKind(
    first_frame.FirstFrameStep, first_frame.symbolic_inputs, first_frame.example_inputs, first_frame.recorded_inputs
)
_CONTROLLED = DenoiserKind(
    control.ControlStep, control.symbolic_inputs, control.example_inputs, control.recorded_inputs
)


def expands_timesteps(checkpoint: Checkpoint) -> bool:
    """Whether each latent frame has a timestep of its own, so that a picture may be the first: Wan 2.2 TI2V 5B."""
    return bool(checkpoint.index.get("expand_timesteps"))


def takes_whole_clip(checkpoint: Checkpoint) -> bool:
    """Whether the denoiser is given the latents of a whole clip, with a picture at an end: image to video."""
    return checkpoint.pipeline == "WanImageToVideoPipeline" and not expands_timesteps(checkpoint)


def follows_control(checkpoint: Checkpoint) -> bool:
    """Whether the video follows a control clip, a mask and reference pictures: Wan VACE."""
    return checkpoint.pipeline == "WanVACEPipeline"


def kind_of(checkpoint: Checkpoint) -> DenoiserKind:
    """What the denoisers of a checkpoint compute."""
    if expands_timesteps(checkpoint):
        return _FIRST_FRAME
    if follows_control(checkpoint):
        return _CONTROLLED
    if not takes_whole_clip(checkpoint):
        return _PLAIN
    channels = checkpoint.config("transformer")["out_channels"]
    if IMAGE_ENCODER not in checkpoint.classes:
        return DenoiserKind(
            whole_clip.ClipStep,
            whole_clip.symbolic_inputs,
            whole_clip.example_inputs,
            partial(whole_clip.recorded_inputs, channels=channels),
        )
    tokens = pictures_of(checkpoint) * image_encoder.tokens_of(checkpoint.without_weights(IMAGE_ENCODER))
    return DenoiserKind(
        image_tokens.ClipAndImageStep,
        partial(image_tokens.symbolic_inputs, tokens=tokens),
        partial(image_tokens.example_inputs, tokens=tokens),
        partial(image_tokens.recorded_inputs, channels=channels),
    )


def pictures_of(checkpoint: Checkpoint) -> int:
    """How many pictures the image encoder is given: of Wan 2.1 FLF2V the first and the last, of I2V the first, or none.

    Tokens of two have an embedding of their positions.
    """
    if IMAGE_ENCODER not in checkpoint.classes:
        return 0
    return 2 if checkpoint.config("transformer").get("pos_embed_seq_len") else 1


def sources(checkpoint: Checkpoint, precisions: Sequence[str]) -> list[GraphSource]:
    """The graphs of a Wan checkpoint: for text-to-video, also from a first frame or with control, or from pictures."""
    kind, transformers = kind_of(checkpoint), [component for component in ROLES if component in checkpoint.classes]
    encoders: list[GraphSource] = []
    if kind is not _PLAIN or checkpoint.video_input:
        several = takes_whole_clip(checkpoint) or follows_control(checkpoint) or checkpoint.video_input
        encoders = _picture_encoders(precisions, whole_clip=several)
    if pictures := pictures_of(checkpoint):
        encoders = [_image_encoder(precisions, pictures), *encoders]
    return text_to_video(precisions, transformers, kind, encoders)


def text_to_video(
    precisions: Sequence[str],
    transformers: Sequence[str] = ("transformer",),
    kind: DenoiserKind = _PLAIN,
    picture_encoders: Sequence[GraphSource] = (),
) -> list[GraphSource]:
    """The graphs of a checkpoint, by default for text-to-video, for these precisions of its denoisers.

    Args:
        transformers: the components that denoisers are made from.
        kind: what these compute.
        picture_encoders: the graphs of the VAE's encoder.
    """
    denoisers = (_denoiser(component, precisions, kind) for component in transformers)
    return [_encoder(precisions), *denoisers, *picture_encoders, *_decoders(precisions)]


def _encoder(precisions: Sequence[str]) -> GraphSource:
    names = dict.fromkeys(name if name in _ENCODER_PASSES else base_precision(name) for name in precisions)
    blocks = Blocks(BLOCKS["text_encoder"])
    return GraphSource(
        "text_encoder",
        "text_encoder",
        text.TextEncoder,
        text.symbolic_inputs,
        text.symbolic_outputs,
        _text_examples,
        tuple(Form(name, _ENCODER_PASSES.get(name, ()), None if name in _CPU_PRECISIONS else blocks) for name in names),
        _own_text,
    )


def _denoiser(component: str, precisions: Sequence[str], kind: DenoiserKind) -> GraphSource:
    return GraphSource(
        ROLES[component],
        component,
        kind.step,
        kind.inputs,
        denoiser.symbolic_outputs,
        partial(_denoiser_examples, kind=kind),
        tuple(
            Form(name, _DENOISER_PASSES[name], _DENOISER_CUTS.get(name, Blocks(BLOCKS["denoiser"])))
            for name in precisions
        ),
        partial(_own_step, kind=kind),
    )


def _image_encoder(precisions: Sequence[str], pictures: int) -> GraphSource:
    return GraphSource(
        IMAGE_ENCODER,
        IMAGE_ENCODER,
        image_encoder.ImageEncoder,
        partial(image_encoder.symbolic_inputs, pictures=pictures),
        partial(image_encoder.symbolic_outputs, pictures=pictures),
        lambda model: [image_encoder.example_inputs(model, pictures, seed) for seed in range(2)],
        tuple(Form(name) for name in dict.fromkeys(map(base_precision, precisions))),
        partial(_own_image, pictures=pictures),
    )


def _picture_encoders(precisions: Sequence[str], *, whole_clip: bool) -> list[GraphSource]:
    if not whole_clip:
        picture = _chunk("vae_encoder", vae_encoder.PictureEncoder, precisions, {}, first=True)
        return [replace(picture, own=_own_condition)]
    made = [
        _chunk("vae_encoder", vae_encoder.EncoderChunk, precisions, _DECODER_PASSES, first=first)
        for first in (True, False)
    ]
    return [made[0], replace(made[1], own=_own_clip_condition)]


def _chunk(
    role: str, part: type[vae.Chunk], precisions: Sequence[str], passes: Mapping[str, tuple[Pass, ...]], *, first: bool
) -> GraphSource:
    return GraphSource(
        f"{role}_first" if first else f"{role}_next",
        "vae",
        partial(part, first=first),
        partial(vae.symbolic_inputs, part=part, first=first),
        partial(vae.symbolic_outputs, part=part, first=first),
        partial(_vae_examples, part=part, first=first),
        tuple(Form(name, passes.get(name, ())) for name in _vae_precisions(precisions)),
    )


def _vae_precisions(precisions: Sequence[str]) -> Iterable[str]:
    """The base of each; on a CPU bfloat16 pays as much as in the denoiser, and does not show in frames."""
    return dict.fromkeys([*map(base_precision, precisions), *(name for name in precisions if name == "bf16-cpu")])


def _decoders(precisions: Sequence[str]) -> list[GraphSource]:
    made = [
        _chunk(role, part, precisions, _DECODER_PASSES, first=first)
        for role, part in _VAE_PARTS.items()
        for first in (True, False)
    ]
    return [*made[:-1], replace(made[-1], own=partial(_own_clip, made))]


def _own_text(encoder: UMT5EncoderModel) -> tuple[Tensor, Tensor]:
    example = _text_examples(encoder)[-1]
    return text.TextEncoder(encoder)(**example), own_classes.prompt_embeds(encoder, example)


def _own_image(model: CLIPVisionModel, pictures: int) -> tuple[Tensor, Tensor]:
    example = image_encoder.example_inputs(model, pictures)
    return image_encoder.ImageEncoder(model)(**example), own_classes.image_embeds(model, example)


def _own_step(transformer: WanTransformer3DModel, kind: DenoiserKind) -> tuple[Tensor, Tensor]:
    example = _denoiser_examples(transformer, kind)[-1]
    # One sign, so that two branches that are almost equal do not cancel to what rounding left of them.
    example["guidance_weights"] = torch.tensor([0.25, 0.75])
    return kind.step(transformer)(**example)[0], own_classes.next_state(transformer, example)


def _own_condition(autoencoder: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    autoencoder.float()  # as its modules compute; small enough
    part = vae_encoder.PictureEncoder
    example = _vae_examples(autoencoder, part=part, first=True)[-1]
    return part(autoencoder, first=True)(**example)[0], own_classes.condition(autoencoder, example["frames"])


def _own_clip_condition(autoencoder: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """A clip of three latent frames, call by call."""
    autoencoder.float()  # as its modules compute; small enough
    part, made, caches = vae_encoder.EncoderChunk, [], list[Tensor]()
    clip = [vae.example_inputs(autoencoder, part, first=call == 0, seed=call)["frames"] for call in range(3)]
    for call, frames in enumerate(clip):
        condition, *caches = part(autoencoder, first=call == 0)(frames, *caches)
        made.append(condition)
    return torch.cat(made, dim=1), own_classes.condition(autoencoder, torch.cat(clip))


def _own_clip(decoders: Sequence[GraphSource], autoencoder: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    autoencoder.float()  # as its modules compute; small enough
    latents = torch.randn(autoencoder.config.z_dim, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    made = decode(decoders, autoencoder, latents[None].split(1, dim=2))
    return torch.cat(list(made)), own_classes.frames(autoencoder, latents)


def _text_examples(encoder: UMT5EncoderModel) -> list[dict[str, Tensor]]:
    """The last is longer than the distances that UMT5 tells apart."""
    sizes = [(2, 7), (1, 3), (2, encoder.config.relative_attention_max_distance + 20)]
    return [
        text.example_inputs(encoder, branches=branches, text_tokens=tokens, seed=seed)
        for seed, (branches, tokens) in enumerate(sizes)
    ]


def _denoiser_examples(transformer: WanTransformer3DModel, kind: DenoiserKind) -> list[dict[str, Tensor]]:
    """A traced shape, one branch of a single image with one row of state, and a wide clip.

    In the last two `solver_a` is zero, so that nothing but the velocity is compared.
    """
    p, q, r = transformer.config.patch_size
    # B, L, F, h, w, K; frames and pixels in patches
    sizes = [(2, 5, 3, 3, 4, 3), (1, 12, 1, 5, 2, 1), (2, 4, 4, 2, 9, 4)]
    examples = []
    for seed, (branches, tokens, frames, rows, columns, states) in enumerate(sizes):
        size = {"B": branches, "L": tokens, "F": p * frames, "h": q * rows, "w": r * columns, "K": states}
        example = kind.example(transformer, size, seed)
        if seed > 0:
            example["solver_a"].zero_()
        examples.append(example)
    return examples


def _vae_examples(autoencoder: AutoencoderKLWan, *, part: type[vae.Chunk], first: bool) -> list[dict[str, Tensor]]:
    sizes = [(3, 4), (2, 7), (6, 3)]
    return [
        vae.example_inputs(autoencoder, part, first=first, height=height, width=width, seed=seed)
        for seed, (height, width) in enumerate(sizes)
    ]
