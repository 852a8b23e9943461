"""What of Wan's transformer may run in eight or four bits, found by others' reports and measured on the built-in model.

Only data. `benchmarks/quantisation_quality.py` measures each step, and docs/quantisation.md has its table.
"""

from __future__ import annotations

from dataclasses import replace

from ...graphs.number_formats import E4M3, INT8
from ..policy import QuantizationPolicy, QuantizationStep

_LINEARS = (
    QuantizationStep("feed-forward", linears=r"ffn\.net\.(0\.proj|2)"),
    # Keys and values of cross-attention are made of the few tokens of the text, and of pictures: nothing to gain.
    QuantizationStep("cross-attention q and out", linears=r"attn2\.to_(q|out\.0)"),
    QuantizationStep("self-attention projections", linears=r"attn1\.to_(q|k|v|out\.0)"),
)

_FP8 = QuantizationPolicy(
    number_format=E4M3,
    block=r"(?:vace_)?blocks\.(\d+)\.(.+)",  # those of VACE are a row of their own
    kept_at_each_end=1 / 12,  # 2 of 30, 3 of 40
    steps=(*_LINEARS, QuantizationStep("self-attention products", attentions=r"attn1")),
    default="self-attention products",
    weight="transformer.{}.weight",
    values_weight="transformer.{}.to_v.weight",
)
# Not the products: each of n tokens is given about 1/n of an attention, which eight bits of one step round to nothing.
_INT8 = replace(_FP8, number_format=INT8, steps=_LINEARS, default="self-attention projections")

_NVFP4 = replace(_FP8, four_bits_error=1.5)

CALIBRATED = {"fp8": _FP8, "int8-static": _INT8, "nvfp4": _NVFP4}
