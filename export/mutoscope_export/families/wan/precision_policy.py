"""What of Wan's transformer may run in eight bits, found by others' reports and measured on the built-in model.

Only data. `benchmarks/quantisation_quality.py` judges each step, and docs/quantisation.md has its table.
"""

from dataclasses import replace

from ...graphs.number_formats import E4M3, INT8
from ...quantization.policy import NarrowingPolicy, Widening

_LINEARS = (
    Widening("feed-forward", linears=r"ffn\.net\.(0\.proj|2)"),
    # Keys and values of cross-attention are made of the few tokens of the text: nothing to gain.
    Widening("cross-attention q and out", linears=r"attn2\.to_(q|out\.0)"),
    Widening("self-attention projections", linears=r"attn1\.to_(q|k|v|out\.0)"),
)

_FP8 = NarrowingPolicy(
    number_format=E4M3,
    block=r"blocks\.(\d+)\.(.+)",
    kept_at_each_end=1 / 12,  # 2 of 30, 3 of 40
    widenings=(*_LINEARS, Widening("self-attention products", attentions=r"attn1")),
    default="self-attention products",
    weight="transformer.{}.weight",
    values_weight="transformer.{}.to_v.weight",
)
# Not the products: each of n tokens is given about 1/n of an attention, which eight bits of one step round to nothing.
_INT8 = replace(_FP8, number_format=INT8, widenings=_LINEARS, default="self-attention projections")

NARROWED = {"fp8": _FP8, "int8-static": _INT8}
