"""The networks of Wan 2.1 at their real sizes, with random weights that hardly take memory.

Neither memory nor time of what is measured depends on the weights. Knows sizes. Knows nothing of what is measured.
"""

from __future__ import annotations

from typing import Any

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
PATCH = (1, 2, 2)
LATENT_CHANNELS, MAX_SEQUENCE_LENGTH, SPATIAL, TEMPORAL = 16, 512, 8, 4


def make_network(component: str, config: dict[str, Any]) -> Any:
    """A `component` of a checkpoint whose bfloat16 weights are windows onto one array of random numbers."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        network = {
            "text_encoder": lambda: UMT5EncoderModel(UMT5Config(**config)),
            "transformer": lambda: WanTransformer3DModel(**config),
            "vae": lambda: AutoencoderKLWan(**config),
        }[component]()
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
