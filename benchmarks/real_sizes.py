"""The networks of published Wan checkpoints at their real sizes, with random weights that hardly take memory.

Neither memory nor time of what is measured depends on the weights. Knows sizes. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mutoscope.bundle.manifest import Geometry

Config = Mapping[str, Any]

UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
CLIP_VIT_H = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip
VAE_2_1: Config = {"z_dim": 16, "scale_factor_spatial": 8, "scale_factor_temporal": 4}
VAE_2_2: Config = {
    "z_dim": 48, "scale_factor_spatial": 16, "scale_factor_temporal": 4, "base_dim": 160, "decoder_base_dim": 256,
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
    "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
PATCH = (1, 2, 2)
MAX_SEQUENCE_LENGTH, MAX_PATCHES = 512, 1024


@dataclass(frozen=True)
class Model:
    """A published checkpoint, as far as its configuration files decide what comes of it.

    Attributes:
        transformer: parameters of `WanTransformer3DModel`, the same for each of its `experts`.
        vae: parameters of `AutoencoderKLWan`.
        index: what `model_index.json` says.
        text_encoder: parameters of `UMT5EncoderModel`.
        experts: how many transformers it has.
        sees: whether it has the image encoder CLIP ViT-H.
        denoiser_like: a model whose denoiser is the same graph, but for channels of its input.
    """

    transformer: Config
    vae: Config = field(default_factory=lambda: VAE_2_1)
    index: Config = field(default_factory=lambda: {"_class_name": "WanPipeline"})
    experts: int = 1
    sees: bool = False
    denoiser_like: str = ""
    text_encoder: Config = field(default_factory=lambda: UMT5_XXL)

    @property
    def latent_channels(self) -> int:
        return int(self.vae["z_dim"])

    @property
    def spatial(self) -> int:
        """How many pixels a latent pixel stands for, along each side."""
        return int(self.vae["scale_factor_spatial"])

    @property
    def temporal(self) -> int:
        """How many frames a latent frame after the first stands for."""
        return int(self.vae["scale_factor_temporal"])

    @property
    def takes_whole_clip(self) -> bool:
        """Whether its denoiser is given the latents of a clip whose first frame is the picture."""
        return bool(self.index["_class_name"] == "WanImageToVideoPipeline")

    @property
    def follows_control(self) -> bool:
        """Whether its denoiser is given latents of a clip, and a mask, that the video follows."""
        return bool(self.index["_class_name"] == "WanVACEPipeline")

    @property
    def picture_roles(self) -> tuple[str, ...]:
        """The graphs that the encoder of its VAE becomes."""
        if self.takes_whole_clip or self.follows_control:
            return ("vae_encoder_first", "vae_encoder_next")
        return ("vae_encoder_first",) if self.index.get("expand_timesteps") else ()

    def geometry(self, halo: int) -> Geometry:
        """What a manifest of this model says of sizes; `halo` is that of its VAE's decoder."""
        return Geometry(
            latent_channels=self.latent_channels,
            vae_scale_factor_spatial=self.spatial,
            vae_scale_factor_temporal=self.temporal,
            patch_size=PATCH,
            max_patches=MAX_PATCHES,
            vae_decoder_halo=halo,
        )

    def networks(self) -> dict[str, Config]:
        """The configuration of each component that has weights."""
        transformers = {f"transformer{'' if number == 1 else f'_{number}'}" for number in range(1, self.experts + 1)}
        sees = {"image_encoder": CLIP_VIT_H} if self.sees else {}
        return {
            "text_encoder": self.text_encoder,
            **dict.fromkeys(sorted(transformers), self.transformer),
            "vae": self.vae,
        } | sees


_OF_1_3B = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_OF_14B = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
_OF_CLIP = {"in_channels": 36, "out_channels": 16}
_IMAGE_TO_VIDEO = {"_class_name": "WanImageToVideoPipeline"}
_IMAGE_TOKENS = {"image_dim": 1280, "added_kv_proj_dim": 5120}
_CONTROL = {"_class_name": "WanVACEPipeline"}


def _controlled(*, every: int, of: int) -> dict[str, Any]:
    """With a VACE block for one of so many of its blocks."""
    return {"vace_layers": list(range(0, of, every)), "vace_in_channels": 96}


MODELS: dict[str, Model] = {
    "1.3B": Model(_OF_1_3B),
    "14B": Model(_OF_14B),
    "I2V-14B": Model(_OF_14B | _OF_CLIP | _IMAGE_TOKENS, index=_IMAGE_TO_VIDEO, sees=True),
    "FLF2V-14B": Model(
        _OF_14B | _OF_CLIP | _IMAGE_TOKENS | {"pos_embed_seq_len": 514}, index=_IMAGE_TO_VIDEO, sees=True
    ),
    "5B": Model(
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
        VAE_2_2,
        {"_class_name": "WanPipeline", "expand_timesteps": True},
    ),
    "A14B": Model(_OF_14B, experts=2, denoiser_like="14B"),
    "I2V-A14B": Model(_OF_14B | _OF_CLIP, index=_IMAGE_TO_VIDEO, experts=2, denoiser_like="14B"),
    "VACE-1.3B": Model(_OF_1_3B | _controlled(every=2, of=30), index=_CONTROL),
    "VACE-14B": Model(_OF_14B | _controlled(every=5, of=40), index=_CONTROL),
}
_CLASSES = {
    "text_encoder": "transformers.UMT5EncoderModel", "image_encoder": "transformers.CLIPVisionModel",
    "transformer": "diffusers.WanTransformer3DModel", "transformer_2": "diffusers.WanTransformer3DModel",
    "vae": "diffusers.AutoencoderKLWan",
}  # fmt: skip


def cut_to(model: Model, blocks: int | None) -> Model:
    """The model with its first blocks alone, in each of its transformers and in the text encoder."""
    if blocks is None:
        return model
    changed: dict[str, Any] = {"num_layers": blocks}
    if model.follows_control:
        changed["vace_layers"] = [layer for layer in model.transformer["vace_layers"] if layer < blocks]
    return replace(model, transformer={**model.transformer, **changed}, text_encoder={**UMT5_XXL, "num_layers": blocks})


def configuration(model: Model, folder: Path) -> Any:
    """A checkpoint of this model without weights, whose configuration files are written into a folder."""
    from mutoscope_export.checkpoint.checkpoint import Checkpoint, Overrides

    networks = model.networks()
    for component, config in networks.items():
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    classes = {component: _CLASSES[component] for component in networks}
    if model.follows_control:
        classes["transformer"] = "diffusers.WanVACETransformer3DModel"
    return Checkpoint(folder, folder.name, model.index, classes, Overrides())


def make_network(component: str, config: Config) -> Any:
    """A `component` of a checkpoint with random bfloat16 weights that hardly take memory."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        network = {
            "text_encoder": lambda: UMT5EncoderModel(UMT5Config(**config)),
            "transformer": lambda: WanTransformer3DModel(**config),
            "vae": lambda: AutoencoderKLWan(**config),
        }[component]()
    return with_random_weights(network)


def with_random_weights(network: Any) -> Any:
    """A network without weights, given bfloat16 ones that are windows onto one array of random numbers."""
    import torch

    owners = [
        (module, name)
        for module in network.modules()
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    tables = torch.nn.Embedding
    widest = max(getattr(module, name).numel() for module, name in owners if not isinstance(module, tables))
    pool = torch.empty(max(widest, 1 << 19) + len(owners), dtype=torch.bfloat16).normal_(
        0, 0.02, generator=torch.manual_seed(0)
    )
    for index, (module, name) in enumerate(owners):
        meta, start = getattr(module, name), pool[index:]
        if isinstance(module, tables) and meta.numel() > widest:  # each row begins one number after the one before
            window = pool.as_strided(meta.shape, (1, 1))
        else:
            window = start[: meta.numel()].view(meta.shape)
        setattr(module, name, torch.nn.Parameter(window, requires_grad=False))
    return network.eval()
