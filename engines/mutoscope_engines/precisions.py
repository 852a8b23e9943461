"""The precisions that a graph may have: one row each, and everything that follows from the name.

Knows names and number types. Knows no library, no model and no bundle.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """What a graph of this name is.

    Attributes:
        network_type: NumPy's name of the type that its network has before anything is quantized.
        base: the precision of graphs that stand in for one that does not exist in this: the network type, unquantized.
        on_gpu: whether it is written for GPUs; the others are for CPUs.
        calibrated: whether its ranges are found by watching the network, at export.
        compute_capability: the least that a GPU needs to multiply in it: 89 for 8.9. 0 for CPUs.
        fp8_attention: whether the products of attention are in FP8, which engines fuse above a size alone.
    """

    name: str
    network_type: str
    base: str
    on_gpu: bool = False
    calibrated: bool = False
    compute_capability: int = 0
    fp8_attention: bool = False


PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp32", "float32", "fp32"),
        Precision("int8", "float32", "fp32"),
        Precision("bf16-cpu", "bfloat16", "fp32"),
        Precision("bf16", "bfloat16", "bf16", on_gpu=True, compute_capability=80),
        Precision("fp16", "float16", "fp16", on_gpu=True, compute_capability=75),
        Precision("int8-static", "bfloat16", "bf16", on_gpu=True, calibrated=True, compute_capability=80),
        Precision("fp8", "bfloat16", "bf16", on_gpu=True, calibrated=True, compute_capability=89, fp8_attention=True),
        Precision(
            "nvfp4", "bfloat16", "bf16", on_gpu=True, calibrated=True, compute_capability=120, fp8_attention=True
        ),
    )
}
ON_GPU = tuple(each.name for each in PRECISIONS.values() if each.on_gpu)


def base_precision(name: str) -> str:
    """The precision of graphs that stand in for one that does not exist in this."""
    return PRECISIONS[name].base


def network_type(name: str) -> str:
    """NumPy's name of the type that a network has in this precision before anything is quantized."""
    return PRECISIONS[name].network_type
