"""What of Wan's transformer may run in FP8, found by others' reports and measured on the built-in model.

Only data. `benchmarks/quantisation_quality.py` judges each step, and docs/quantisation.md has its table.
"""

from ...fp8_policy import Fp8Policy, Widening

FP8 = Fp8Policy(
    block=r"blocks\.(\d+)\.(.+)",
    kept_at_each_end=1 / 12,  # 2 of 30, 3 of 40
    widenings=(
        Widening("feed-forward", linears=r"ffn\.net\.(0\.proj|2)"),
        # Keys and values of cross-attention are made of the few tokens of the text: nothing to gain.
        Widening("cross-attention q and out", linears=r"attn2\.to_(q|out\.0)"),
        Widening("self-attention projections", linears=r"attn1\.to_(q|k|v|out\.0)"),
        Widening("self-attention products", attentions=r"attn1"),
    ),
    default="self-attention products",
    weight="transformer.{}.weight",
    values_weight="transformer.{}.to_v.weight",
)
