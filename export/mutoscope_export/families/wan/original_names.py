"""What the authors of Wan, and ComfyUI after them, call the parameters of `WanTransformer3DModel`."""

from __future__ import annotations

import re

_OF_A_BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "norm2": "norm3",  # the one norm of a block with parameters, which Diffusers calls in the order of use
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
    "proj_in": "before_proj",  # of VACE blocks alone, as the next
    "proj_out": "after_proj",
}
_OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}


def _renaming(names: dict[str, str]) -> tuple[re.Pattern[str], dict[str, str]]:
    return re.compile(rf"(?<![^.])({'|'.join(map(re.escape, names))})(?![^.])"), names


_BLOCK, _TOP = _renaming(_OF_A_BLOCK), _renaming(_OUTSIDE)


def original_name(name: str) -> str:
    """The original name of a parameter whose name in Diffusers is given; equal where both have the same."""
    pattern, names = _BLOCK if name.startswith(("blocks.", "vace_blocks.")) else _TOP
    return pattern.sub(lambda found: names[found[0]], name)
