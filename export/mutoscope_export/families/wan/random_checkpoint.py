"""Small checkpoints with random weights in the Diffusers layout, for tests and measurements.

They are made through the classes that published checkpoints are made for, so that `WanPipeline.from_pretrained` loads
them. Every parameter is random and large enough to matter, also those that networks start with as zeros or ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_WIDTH = 16
MAX_SEQUENCE_LENGTH = 64

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"&()-éßü"
_WORDS = ("▁a", "▁the", "▁red", "▁blue", "▁circle", "▁square", "▁moving", "ing", "▁on", "▁black", "▁café", "er", "is")

_UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULER_OPTIONS: dict[str, Mapping[str, Any]] = {
    "UniPCMultistepScheduler": _UNIPC,
    "DPMSolverMultistepScheduler": _UNIPC,
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "FlowMatchLCMScheduler": {"shift": 3.0},
}

VAE_2_1: Mapping[str, Any] = {"is_residual": False, "scale_factor_spatial": 8}
VAE_2_2: Mapping[str, Any] = {
    "is_residual": True, "scale_factor_spatial": 16, "patch_size": 2, "in_channels": 12, "out_channels": 12,
}  # fmt: skip


def random_checkpoint(
    folder: Path,
    *,
    scheduler: str = "UniPCMultistepScheduler",
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | None = None,
    latent_channels: int = 4,
    text_width: int = TEXT_WIDTH,
    vae_config: Mapping[str, Any] | None = None,
    **transformer: Any,
) -> Path:
    """Writes a checkpoint that `WanPipeline.from_pretrained(folder)` and `export_checkpoint` read; returns `folder`.

    `transformer` are parameters of `WanTransformer3DModel`, `vae_config` of `AutoencoderKLWan`, which differ from small
    ones (`VAE_2_2`: those of Wan 2.2's); `text_width` is what the text encoder gives and the transformer takes.
    `max_shard_size` splits weights into several files. With `expand_timesteps` among the former it also takes a
    picture, as Wan 2.2 TI2V 5B does; with `image_to_video` it needs one, as Wan 2.2 I2V-A14B, and with an `image_dim`
    as Wan 2.1 I2V-14B. With `vace_layers` it follows a control clip, as Wan 2.1 VACE.
    """
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    kind: Any = WanPipeline
    own: dict[str, Any] = {"expand_timesteps": transformer.pop("expand_timesteps", False)}
    if transformer.pop("image_to_video", False):
        kind = WanImageToVideoPipeline
        if width := transformer.get("image_dim"):
            own |= {"image_encoder": _randomised(_image_encoder(width)), "image_processor": CLIPImageProcessor()}
        scale = 2 ** sum((vae_config or {}).get("temperal_downsample", (False, True, True)))
        transformer = {"in_channels": 2 * latent_channels + scale, "out_channels": latent_channels, **transformer}
    if "vace_layers" in transformer:
        kind, own = WanVACEPipeline, {}
        spatial = {**VAE_2_1, **(vae_config or {})}["scale_factor_spatial"]
        transformer = {"vace_in_channels": 2 * latent_channels + spatial**2, **transformer}
    tokenizer = _tokenizer()
    pipeline = kind(
        tokenizer=tokenizer,
        text_encoder=_randomised(_text_encoder(len(tokenizer), text_width)).to(dtype),
        transformer=_randomised(_transformer(latent_channels, text_width, transformer)).to(dtype),
        vae=_randomised(_vae(latent_channels, {**VAE_2_1, **(vae_config or {})})).to(dtype),
        scheduler=getattr(diffusers, scheduler)(**SCHEDULER_OPTIONS[scheduler]),
        **own,
    )
    torch.random.set_rng_state(torch_state)
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
    return folder


def add_expert(checkpoint: Path, boundary_ratio: float) -> Path:
    """Gives a checkpoint of `random_checkpoint` a second transformer, in float32, of the same sizes and other weights.

    It works below `boundary_ratio` of the training timesteps, as in Wan 2.2 A14B. Returns `checkpoint`.
    """
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(1)
    second: Any = _randomised(
        WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(checkpoint / "transformer"))
    )
    torch.random.set_rng_state(torch_state)
    second.save_pretrained(checkpoint / "transformer_2", safe_serialization=True)
    path = checkpoint / "model_index.json"
    index = json.loads(path.read_text("utf-8"))
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": boundary_ratio}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n")
    return checkpoint


def _tokenizer() -> T5Tokenizer:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -6.0) for letter in _LETTERS] + [(word, -4.0) for word in _WORDS]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH)


def _text_encoder(num_tokens: int, width: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=num_tokens, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return UMT5EncoderModel(config)


def _image_encoder(width: int) -> CLIPVisionModel:
    """With four patches of the size of pictures that CLIP takes."""
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=224,
        patch_size=112, hidden_act="gelu",
    )  # fmt: skip
    return CLIPVisionModel(config)


def _transformer(latent_channels: int, text_width: int, given: Mapping[str, Any]) -> nn.Module:
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 40,
        "freq_dim": 32, "text_dim": text_width, "in_channels": latent_channels, "out_channels": latent_channels,
    }  # fmt: skip
    kind: Any = WanVACETransformer3DModel if "vace_layers" in given else WanTransformer3DModel
    made: nn.Module = kind(**(config | dict(given)))
    return made


def _vae(latent_channels: int, given: Mapping[str, Any]) -> AutoencoderKLWan:
    statistics = {
        "latents_mean": torch.linspace(-0.5, 0.5, latent_channels).tolist(),
        "latents_std": torch.linspace(0.7, 1.3, latent_channels).tolist(),
    }
    sizes = {"base_dim": 8, "z_dim": latent_channels, "num_res_blocks": 1}
    return AutoencoderKLWan(**{**sizes, **statistics, **given})


def _randomised(module: nn.Module) -> nn.Module:
    """Matrices that keep the size of what passes through them, gains about 1, biases about 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
            vector = is_gain or parameter.ndim == 1
            spread = 0.2 if vector else parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if is_gain else 0.0, spread)
    return module
