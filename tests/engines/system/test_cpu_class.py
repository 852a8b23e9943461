"""The classes of CPUs, by what real ones say of themselves in /proc/cpuinfo."""

from __future__ import annotations

import pytest
from mutoscope_engines.system import machine
from mutoscope_engines.system.cpu_class import INSTRUCTIONS, CpuClass, class_of, cpu_class

AVX2 = "sse4_2 avx f16c fma avx2 bmi2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
NEON = "fp asimd aes crc32 atomics"


@pytest.mark.parametrize(
    ("cpu", "flags", "expected"),
    [
        ("Intel Ivy Bridge", "sse4_2 avx f16c", CpuClass.OTHER),
        ("Intel Haswell, AMD Zen to Zen 3", AVX2, CpuClass.AVX2),
        ("Intel Alder Lake", f"{AVX2} avx_vnni", CpuClass.AVX2_VNNI),
        ("Intel Xeon Phi, whose AVX-512 lacks bytes", f"{AVX2} avx512f avx512cd avx512er avx512pf", CpuClass.AVX2),
        ("Intel Skylake-SP", AVX512, CpuClass.AVX512),
        ("Intel Ice Lake", f"{AVX512} avx512_vnni avx512_vbmi2", CpuClass.AVX512_VNNI),
        ("AMD Zen 4", f"{AVX512} avx512_bf16 avx512_vnni", CpuClass.AVX512_BF16),
        ("AMD Zen 5", f"{AVX512} avx512_bf16 avx512_vnni avx_vnni", CpuClass.AVX512_BF16),
        ("Intel Sapphire Rapids", f"{AVX512} avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8", CpuClass.AMX),
        ("Arm Cortex-A72", NEON, CpuClass.ARM),
        ("Arm Neoverse N1", f"{NEON} asimddp", CpuClass.ARM_DOTPROD),
        ("AWS Graviton 3", f"{NEON} asimddp i8mm bf16 sve", CpuClass.ARM_BF16),
        ("a system that does not tell", "", CpuClass.OTHER),
    ],
)
def test_a_cpu_is_of_the_class_of_its_best_instructions(cpu: str, flags: str, expected: CpuClass) -> None:
    assert class_of(frozenset(flags.split())) is expected


def test_every_class_can_be_reached() -> None:
    assert [class_of(flags) for flags in INSTRUCTIONS.values()] == list(CpuClass)


def test_the_class_of_this_machine_is_that_of_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: INSTRUCTIONS[CpuClass.AVX512_VNNI])
    assert cpu_class() is CpuClass.AVX512_VNNI
