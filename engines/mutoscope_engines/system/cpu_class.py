"""The classes of CPUs that decide what is fastest on them: by the widest instructions for products of small numbers.

Knows instructions. Knows nothing of backends: each says itself what it prefers on which class.
"""

from __future__ import annotations

from collections.abc import Set
from enum import StrEnum

from . import machine


class CpuClass(StrEnum):
    """From the fastest to the slowest at products in few bits, x86 before Arm."""

    AMX = "amx"  # tiles of bfloat16 and int8
    AVX512_BF16 = "avx512-bf16"  # vectors of bfloat16, and of int8 as the next
    AVX512_VNNI = "avx512-vnni"  # four products of int8 are summed in 32 bits
    AVX2_VNNI = "avx2-vnni"
    AVX512 = "avx512"  # two products of int8 are summed in 16 bits, which saturate
    AVX2 = "avx2"
    ARM_BF16 = "arm-bf16"
    ARM_DOTPROD = "arm-dotprod"  # four products of int8 are summed in 32 bits
    ARM = "arm"
    OTHER = "other"  # older, or of a system that does not tell


# In Linux's words, as `machine.cpu_flags` gives them. The first class whose instructions are all there is the CPU's.
INSTRUCTIONS: dict[CpuClass, frozenset[str]] = {
    CpuClass.AMX: frozenset({"amx_bf16", "amx_int8", "avx512_vnni"}),
    CpuClass.AVX512_BF16: frozenset({"avx512_bf16", "avx512_vnni"}),
    CpuClass.AVX512_VNNI: frozenset({"avx512_vnni"}),
    CpuClass.AVX2_VNNI: frozenset({"avx_vnni", "avx2"}),
    CpuClass.AVX512: frozenset({"avx512f", "avx512bw", "avx512vl"}),
    CpuClass.AVX2: frozenset({"avx2"}),
    CpuClass.ARM_BF16: frozenset({"bf16", "asimddp"}),
    CpuClass.ARM_DOTPROD: frozenset({"asimddp"}),
    CpuClass.ARM: frozenset({"asimd"}),
    CpuClass.OTHER: frozenset(),
}


def class_of(flags: Set[str]) -> CpuClass:
    """The class of a CPU with these instructions."""
    return next(each for each, needed in INSTRUCTIONS.items() if needed <= flags)


def cpu_class() -> CpuClass:
    """The class of this machine's CPU."""
    return class_of(machine.cpu_flags())
