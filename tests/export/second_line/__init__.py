"""A second model line: what export needs to know of it. Nothing outside this folder knows of it but a table's row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from mutoscope.bundle.conditionings import NumberConditioning, TextConditioning
from mutoscope.bundle.manifest import Defaults, Draw, Frames, Geometry
from mutoscope.solvers.options import from_diffusers
from mutoscope_engines.precisions import base_precision
from mutoscope_export.checkpoint.checkpoint import Checkpoint
from mutoscope_export.checkpoint.tokenizer import READS_SERIALIZED, settings_of
from mutoscope_export.families.decoding import decode
from mutoscope_export.families.family import Description, Form, GraphSource
from mutoscope_export.graphs.parts import made_of
from mutoscope_export.passes.int8 import DynamicInt8
from torch import Tensor

from . import decoder, denoiser, letters, text
from .networks import SCALE, WINDOW_FRAMES, WINDOW_LATENTS, DriftDecoder

NAME = "drift"
_HERE = "tests.export.second_line.networks"
PIPELINES = {
    "DriftPipeline": {
        "tokenizer": (READS_SERIALIZED,),
        "tokenizer_2": (READS_SERIALIZED,),
        "text_encoder": ("transformers.BertModel",),
        "text_encoder_2": (f"{_HERE}.DriftLetters",),
        "transformer": (f"{_HERE}.DriftTransformer",),
        "vae": (f"{_HERE}.DriftDecoder",),
        "scheduler": ("diffusers.FlowMatchEulerDiscreteScheduler",),
    }
}
_PASSES = {"fp32": (), "int8": (DynamicInt8(denoiser.QUANTIZABLE_WEIGHTS),), "bf16-cpu": (), "bf16": ()}


def describe(checkpoint: Checkpoint) -> Description:
    """What the manifest says of a checkpoint."""
    transformer, vae = map(checkpoint.without_weights, ("transformer", "vae"))
    if transformer.config.channels != vae.config.channels:
        raise ValueError(f"the transformer has {transformer.config.channels} channels, the VAE {vae.config.channels}")
    channels, scheduler = vae.config.channels, checkpoint.scheduler
    frames = Frames(
        first=WINDOW_FRAMES,
        step=WINDOW_FRAMES,
        most=10 * WINDOW_FRAMES,
        latents_per_call=(WINDOW_LATENTS, WINDOW_LATENTS),
        frames_per_call=(WINDOW_FRAMES, WINDOW_FRAMES),
    )
    frame_rate = NumberConditioning(name="fps", input="fps", minimum=1, maximum=60)
    draws = (
        Draw(input="latents", shape=(channels, "F", "h", "w")),
        Draw(input="texture", shape=(channels, "h", "w")),
    )
    return Description(
        geometry=Geometry(
            latent_channels=channels, vae_scale_factor_spatial=SCALE, vae_scale_factor_temporal=3,
            patch_size=(1, 1, 1), max_patches=64, vae_decoder_halo=decoder.HALO,
        ),
        frames=frames,
        conditionings=(*_prompt(checkpoint), frame_rate),
        draws=draws,
        defaults=Defaults(
            height=32, width=48, num_frames=18, num_inference_steps=4, guidance_scale=2.0, fps=12, negative_prompt="",
            scheduler=from_diffusers(scheduler),
        ),
        scheduler=scheduler,
        precisions=tuple(_PASSES),
    )  # fmt: skip


def _prompt(checkpoint: Checkpoint) -> list[TextConditioning]:
    """The prompt as both encoders read it, each with its tokenizer, its length and its input of the denoiser."""
    words, spelling = map(checkpoint.without_weights, ("text_encoder", "text_encoder_2"))
    settings = settings_of(checkpoint.tokenizer(), checkpoint.root / "tokenizer", words.config.vocab_size)
    prompt = TextConditioning(
        name="prompt",
        role="text_encoder",
        feeds=text.FEEDS,
        max_sequence_length=min(settings.max_tokens, words.config.max_position_embeddings),
        pad_token_id=settings.pad_token_id,
        negative="negative_prompt",
        symbol="S",
    )
    folder = checkpoint.root / "tokenizer_2"
    settings = settings_of(checkpoint.tokenizer("tokenizer_2"), folder, spelling.config.vocab_size)
    by_letters = TextConditioning(
        name="prompt",
        role="text_encoder_2",
        feeds=letters.FEEDS,
        max_sequence_length=min(settings.max_tokens, spelling.config.max_letters),
        pad_token_id=settings.pad_token_id,
        negative="negative_prompt",
        tokenizer="tokenizer_2.json",
        cleaning="spaces",
        symbol="N",
    )
    return [prompt, by_letters]


def original_name(name: str) -> str:
    """Its authors publish no other layout."""
    return name


def sources(checkpoint: Checkpoint, precisions: Sequence[str]) -> list[GraphSource]:
    """The graphs to make, those of one component beside each other."""
    bases = tuple(Form(name) for name in dict.fromkeys(map(base_precision, precisions)))
    from_the_prompt = made_of(*text.FEEDS.values(), *letters.FEEDS.values())
    steps = tuple(Form(name, _PASSES[name], from_the_prompt) for name in precisions)
    decoders = [
        GraphSource(
            role, "vae", module, partial(decoder.inputs, role=role), partial(decoder.outputs, role=role),
            partial(decoder.examples, role=role), bases,
        )
        for role, module in decoder.MODULES.items()
    ]  # fmt: skip
    return [
        GraphSource(
            "text_encoder", "text_encoder", text.TextEncoder, text.inputs, text.outputs, text.examples, bases, text.own
        ),
        GraphSource(
            "text_encoder_2", "text_encoder_2", letters.LetterEncoder, letters.inputs, letters.outputs,
            letters.examples, bases, letters.own,
        ),
        GraphSource(
            "denoiser", "transformer", denoiser.DenoiserStep, denoiser.inputs, denoiser.outputs, denoiser.examples,
            steps, denoiser.own,
        ),
        *decoders[:-1],
        replace(decoders[-1], own=partial(_own_clip, decoders)),
    ]  # fmt: skip


def _own_clip(decoders: Sequence[GraphSource], vae: DriftDecoder) -> tuple[Tensor, Tensor]:
    """A clip by the modules, call by call, and by the line's own decoder."""
    latents = torch.randn(vae.config.channels, 3 * WINDOW_LATENTS, 3, 5, generator=torch.Generator().manual_seed(0))
    made = torch.cat(list(decode(decoders, vae, latents[None].split(WINDOW_LATENTS, dim=2))))
    pixels = vae.decode(latents).permute(0, 2, 3, 1)
    return made, ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
