"""Wan text-to-video (Wan 2.1, and what has its structure): what export needs to know of it.

Knows the components, their configuration and which graphs come of them. The arithmetic is in the modules beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from mutoscope.bundle.bundle import Defaults, Geometry, Text, base_precision
from mutoscope.solvers.schedule import CLASSES, WHOLE_TIMESTEPS
from torch import Tensor
from transformers import UMT5EncoderModel

from ...checkpoint.tokenizer import CONFIG, READS_SERIALIZED, refuse_other_vocabulary
from ...errors import ExportError
from ...graphs.parts import Blocks, Cut, made_of
from ...graphs.trace import Pass
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
from .. import Form, GraphSource
from . import denoiser, own_classes, text, vae
from .precision_policy import NARROWED as NARROWED
from .reference import reference as reference

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint

NAME = "wan"
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": (
        "transformers.T5TokenizerFast", "transformers.T5Tokenizer", "transformers.AutoTokenizer", READS_SERIALIZED,
    ),
    "text_encoder": ("transformers.UMT5EncoderModel",),
    "transformer": ("diffusers.WanTransformer3DModel",),
    "vae": ("diffusers.AutoencoderKLWan",),
    "scheduler": tuple(f"diffusers.{name}" for name in CLASSES),
}  # fmt: skip
_DEFAULTS = Defaults(
    height=480, width=832, num_frames=81, num_inference_steps=50, guidance_scale=5.0, fps=16, negative_prompt="",
    scheduler="unipc",
)  # fmt: skip
# FastVideo's models by distribution matching. Its `DmdDenoisingStage` takes no guidance, and of the levels of a
# flow-matching scheduler with shift 8, which it makes itself, those next to its timesteps 1000, 757 and 522.
_DMD = "WanDMDPipeline"
_FEW_STEPS: Mapping[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "sigmas": (1.0, 0.28, 0.12)}
DEFAULTS = {"WanPipeline": _DEFAULTS, _DMD: msgspec.structs.replace(_DEFAULTS, **_FEW_STEPS)}
SCHEDULERS = {_DMD: {"_class_name": "FlowMatchLCMScheduler", "shift": 8.0, WHOLE_TIMESTEPS: True}}
PREVIEWED = "vae"

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
    **{name: _DENOISER_ON_GPUS for name in NARROWED},  # after those that follow from its calibration
}
_DECODER_PASSES: Mapping[str, tuple[Pass, ...]] = {
    "fp32": (fewer_products_over_time,),
    "bf16-cpu": (fewer_products_over_time,),
    "bf16": (convolve_over_time,),
    "fp16": (convolve_over_time,),
}
# What the text alone decides is computed once a video. On GPUs it hardly takes time, and would take memory.
_CPU_PRECISIONS = ("fp32", "int8", "bf16-cpu")
_DENOISER_CUTS: Mapping[str, Cut] = dict.fromkeys(_CPU_PRECISIONS, made_of("prompt_embeds"))
BLOCKS = {"denoiser": r"blocks\.(\d+)\.", "text_encoder": r"block\.(\d+)\."}  # in the names of their weights
PRECISIONS = tuple(_DENOISER_PASSES)

_MAX_SEQUENCE_LENGTH = 512  # of `WanPipeline`
_WAN_2_2 = {
    "transformer_2": "two transformers, as in Wan 2.2 A14B",
    "boundary_ratio": "two transformers, as in Wan 2.2 A14B",
    "expand_timesteps": "a timestep for each token, as in Wan 2.2 TI2V 5B",
}


def refuse_unsupported(checkpoint: Checkpoint, index: Mapping[str, Any]) -> None:
    for option, meaning in _WAN_2_2.items():
        value = index.get(option)
        if value not in (None, False, [None, None]):
            raise ValueError(
                f"{option} is {value!r}: it has {meaning}, and that is not supported yet; "
                "supported is Wan 2.1 text-to-video, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
            )
    transformer, encoder, autoencoder = _without_weights(checkpoint)
    denoiser.DenoiserStep(transformer)
    text.TextEncoder(encoder)
    _refuse_contradictions(transformer.config, encoder.config, autoencoder.config)


def _without_weights(checkpoint: Checkpoint) -> tuple[WanTransformer3DModel, UMT5EncoderModel, AutoencoderKLWan]:
    transformer, encoder, autoencoder = map(checkpoint.without_weights, ("transformer", "text_encoder", "vae"))
    return transformer, encoder, autoencoder


def _refuse_contradictions(transformer: Any, encoder: Any, autoencoder: Any) -> None:
    """Sizes that two configuration files, or two lines of one, must agree on."""
    patch = autoencoder.patch_size or 1
    spatial = 2 ** (len(autoencoder.dim_mult) - 1) * patch
    for first, one, second, other in (
        ("text_dim of the transformer", transformer.text_dim, "d_model of the text encoder", encoder.d_model),
        ("in_channels of the transformer", transformer.in_channels, "z_dim of the VAE", autoencoder.z_dim),
        ("scale_factor_spatial of the VAE", autoencoder.scale_factor_spatial, "that of its layers", spatial),
        ("scale_factor_temporal of the VAE", autoencoder.scale_factor_temporal, "that of its layers",
         2 ** sum(autoencoder.temperal_downsample)),
        ("out_channels of the VAE", autoencoder.out_channels, "three colours times patch_size squared", 3 * patch**2),
        ("length of latents_mean", len(autoencoder.latents_mean), "z_dim of the VAE", autoencoder.z_dim),
        ("length of latents_std", len(autoencoder.latents_std), "z_dim of the VAE", autoencoder.z_dim),
    ):  # fmt: skip
        if one != other:
            raise ValueError(f"{first} is {one}, {second} {other}; they must be equal")


def geometry(checkpoint: Checkpoint) -> Geometry:
    transformer, _, autoencoder = _without_weights(checkpoint)
    return Geometry(
        latent_channels=autoencoder.config.z_dim,
        vae_scale_factor_spatial=autoencoder.config.scale_factor_spatial,
        vae_scale_factor_temporal=autoencoder.config.scale_factor_temporal,
        patch_size=tuple(transformer.config.patch_size),
        max_patches=transformer.config.rope_max_seq_len,
        vae_decoder_halo=vae.DecoderChunk(autoencoder, first=True).halo(),
    )


def text_settings(checkpoint: Checkpoint, tokenizer: Any) -> Text:
    if tokenizer.pad_token_id is None:
        raise ExportError("the tokenizer has no pad_token, and prompts are padded. Get the checkpoint again")
    longest = tokenizer.model_max_length
    if type(longest) is not int or longest < 1:  # a bool is an int
        raise ExportError(
            f"model_max_length of the tokenizer is {longest!r}; it must be an integer of at least 1. "
            "Get tokenizer/tokenizer_config.json again"
        )
    encoder = checkpoint.without_weights("text_encoder")
    try:
        refuse_other_vocabulary(tokenizer, encoder.config.vocab_size)
    except ExportError as error:
        if (checkpoint.root / "tokenizer" / CONFIG).is_file():
            raise
        raise ExportError(
            f"tokenizer/{CONFIG} is missing, and without it the class adds tokens of its own, so that the vocabulary "
            "does not fit the text encoder. Get the checkpoint again, whole"
        ) from error
    return Text(
        max_sequence_length=min(_MAX_SEQUENCE_LENGTH, longest),
        width=encoder.config.d_model,
        pad_token_id=tokenizer.pad_token_id,
    )


def sources(precisions: Sequence[str]) -> list[GraphSource]:
    base_forms = tuple(Form(name) for name in dict.fromkeys(map(base_precision, precisions)))
    encoder = GraphSource(
        "text_encoder",
        "text_encoder",
        text.TextEncoder,
        text.symbolic_inputs,
        text.symbolic_outputs,
        _text_examples,
        tuple(
            Form(
                name,
                _ENCODER_PASSES.get(name, ()),
                None if name in _CPU_PRECISIONS else Blocks(BLOCKS["text_encoder"]),
            )
            for name in _encoder_precisions(precisions)
        ),
    )
    step = GraphSource(
        "denoiser",
        "transformer",
        denoiser.DenoiserStep,
        denoiser.symbolic_inputs,
        denoiser.symbolic_outputs,
        _denoiser_examples,
        tuple(
            Form(name, _DENOISER_PASSES[name], _DENOISER_CUTS.get(name, Blocks(BLOCKS["denoiser"])))
            for name in precisions
        ),
    )
    # On a CPU they are as much worth narrowing as the denoiser, and bfloat16 does not show in frames.
    decoder_forms = (*base_forms, *(Form(name) for name in precisions if name == "bf16-cpu"))
    decoders = [
        GraphSource(
            f"{role}_first" if first else f"{role}_next",
            "vae",
            partial(part, first=first),
            partial(vae.symbolic_inputs, part=part, first=first),
            partial(vae.symbolic_outputs, part=part, first=first),
            partial(_vae_examples, part=part, first=first),
            tuple(Form(form.precision, _DECODER_PASSES.get(form.precision, ())) for form in decoder_forms),
        )
        for role, part in _VAE_PARTS.items()
        for first in (True, False)
    ]
    return [encoder, step, *decoders]


def _encoder_precisions(precisions: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name if name in _ENCODER_PASSES else base_precision(name) for name in precisions))


def beside_own_class(component: str, model: Any) -> tuple[Tensor, Tensor]:
    if component == "vae":
        model.float()  # as its module computes; small enough
        latents = torch.randn(model.config.z_dim, 2, 3, 4, generator=torch.Generator().manual_seed(0))
        return torch.cat(list(decode(model, latents))), own_classes.frames(model, latents)
    if component == "text_encoder":
        example = _text_examples(model)[-1]
        return text.TextEncoder(model)(**example), own_classes.prompt_embeds(model, example)
    example = _denoiser_examples(model)[-1]
    # One sign, so that two branches that are almost equal do not cancel to what rounding left of them.
    example["guidance_weights"] = torch.tensor([0.25, 0.75])
    return denoiser.DenoiserStep(model)(**example)[0], own_classes.next_state(model, example)


def decode(autoencoder: AutoencoderKLWan, latents: Tensor) -> Iterator[Tensor]:
    frames = latents[None].split(1, dim=2)
    for part in _VAE_PARTS.values():
        frames = _chunk_by_chunk(autoencoder, part, frames)
    yield from frames


def _chunk_by_chunk(autoencoder: AutoencoderKLWan, part: type[vae.Chunk], given: Iterable[Tensor]) -> Iterator[Tensor]:
    first, following = (part(autoencoder, first=first) for first in (True, False))
    caches: list[Tensor] = []
    for index, value in enumerate(given):
        made, *caches = (following if index else first)(value, *caches)
        yield made


def _text_examples(encoder: UMT5EncoderModel) -> list[dict[str, Tensor]]:
    """The last is longer than the distances that UMT5 tells apart."""
    sizes = [(2, 7), (1, 3), (2, encoder.config.relative_attention_max_distance + 20)]
    return [
        text.example_inputs(encoder, branches=branches, text_tokens=tokens, seed=seed)
        for seed, (branches, tokens) in enumerate(sizes)
    ]


def _denoiser_examples(transformer: WanTransformer3DModel) -> list[dict[str, Tensor]]:
    """A traced shape, one branch of a single image with one row of state, and a wide clip.

    In the last two `solver_a` is zero, so that nothing but the velocity is compared.
    """
    p, q, r = transformer.config.patch_size
    # B, L, F, h, w, K; frames and pixels in patches
    sizes = [(2, 5, 3, 3, 4, 3), (1, 12, 1, 5, 2, 1), (2, 3, 4, 2, 9, 4)]
    examples = []
    for seed, (branches, tokens, frames, height, width, rows) in enumerate(sizes):
        example = denoiser.example_inputs(
            transformer, branches=branches, text_tokens=tokens, latent_frames=p * frames, height=q * height,
            width=r * width, state_rows=rows, seed=seed,
        )  # fmt: skip
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
