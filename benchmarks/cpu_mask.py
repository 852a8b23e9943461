"""Runs a command as if the CPU were of an older class, at the speed of this one.

    python -m benchmarks.cpu_mask avx2 [--sites FOLDER] -- mutoscope bench --against diffusers,openvino

Libraries ask the CPU what it can by one instruction, CPUID. `cpu_mask.c` answers it for them, without what the class
lacks. Linux on x86 alone, with `cc` and `objdump`; as root, /proc/cpuinfo says the same to those that read it.
What it cannot show: another CPU's clock, caches and width.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from mutoscope_engines.system.cpu_class import INSTRUCTIONS, CpuClass
from mutoscope_engines.system.machine import CPU_INFO, cpu_flags

SOURCE = Path(__file__).with_suffix(".c")
LEAF = 7
EAX, EBX, ECX, EDX = range(4)
# In Linux's words: where CPUID's leaf 7 says it, as subleaf, register and bit (Intel's manual, volume 2A).
FLAGS = {
    "avx512f": (0, EBX, 16), "avx512dq": (0, EBX, 17), "avx512ifma": (0, EBX, 21), "avx512pf": (0, EBX, 26),
    "avx512er": (0, EBX, 27), "avx512cd": (0, EBX, 28), "avx512bw": (0, EBX, 30), "avx512vl": (0, EBX, 31),
    "avx512vbmi": (0, ECX, 1), "avx512_vbmi2": (0, ECX, 6), "avx512_vnni": (0, ECX, 11), "avx512_bitalg": (0, ECX, 12),
    "avx512_vpopcntdq": (0, ECX, 14), "avx512_4vnniw": (0, EDX, 2), "avx512_4fmaps": (0, EDX, 3),
    "avx512_vp2intersect": (0, EDX, 8), "amx_bf16": (0, EDX, 22), "avx512_fp16": (0, EDX, 23),
    "amx_tile": (0, EDX, 24), "amx_int8": (0, EDX, 25), "avx_vnni": (1, EAX, 4), "avx512_bf16": (1, EAX, 5),
    "amx_fp16": (1, EAX, 21), "avx_ifma": (1, EAX, 23), "avx_vnni_int8": (1, EDX, 4), "avx_ne_convert": (1, EDX, 5),
    "amx_complex": (1, EDX, 8), "avx_vnni_int16": (1, EDX, 10), "avx10": (1, EDX, 19),
}  # fmt: skip
_SKYLAKE = frozenset({"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"})
# Which of `FLAGS` a CPU of the class keeps: as the first Intel CPUs of it.
KEPT = {
    CpuClass.AVX2: frozenset(),
    CpuClass.AVX2_VNNI: frozenset({"avx_vnni"}),
    CpuClass.AVX512: _SKYLAKE,
    CpuClass.AVX512_VNNI: _SKYLAKE | {"avx512_vnni"},
}


def impossible_because(cpu_class: CpuClass) -> str | None:
    """Why this machine cannot pass for one of the class; `None` when it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "only Linux on x86-64 can hide instructions"
    if cpu_class not in KEPT:
        return f"classes that a CPU can pass for: {', '.join(KEPT)}; got {cpu_class}"
    if lacking := (INSTRUCTIONS[cpu_class] | KEPT[cpu_class]) - cpu_flags():
        return f"this CPU lacks {', '.join(sorted(lacking))}"
    if tools := [tool for tool in ("cc", "objdump") if shutil.which(tool) is None]:
        return f"{' and '.join(tools)} not found; install gcc and binutils"
    return None


def libraries(packages: Iterable[str]) -> list[Path]:
    """The shared libraries of installed packages, and those that their wheels carry beside them."""
    folders = [Path(spec.origin).parent for name in packages if (spec := find_spec(name)) and spec.origin]
    folders += [folder.with_name(f"{folder.name}.libs") for folder in folders]
    return sorted({path for folder in folders for path in folder.rglob("*.so*") if not path.is_symlink()})


def environment(cpu_class: CpuClass, folder: Path, packages: Iterable[str]) -> dict[str, str]:
    """The variables under which a new process finds a CPU of the class.

    Args:
        folder: where the auditor and the lists of CPUID instructions are kept; what it holds is not made again.
    """
    auditor = folder / "cpu_mask.so"
    if not auditor.exists():
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(auditor), str(SOURCE)], check=True)
    for library in libraries(packages):
        sites = folder / f"{library.name}.sites"
        if not sites.exists():
            sites.write_text("".join(f"{site}\n" for site in _cpuid_sites(library)))
    hidden = [(subleaf, *where) for name, (subleaf, *where) in FLAGS.items() if name not in KEPT[cpu_class]]
    bits = ",".join(f"{LEAF}.{subleaf}.{register}.{bit}" for subleaf, register, bit in hidden)
    return {"LD_AUDIT": str(auditor), "CPU_MASK_SITES": str(folder), "CPU_MASK_BITS": bits}


def _cpuid_sites(library: Path) -> list[str]:
    """Addresses in hex. Disassembled, because the two bytes of CPUID also stand inside other instructions."""
    command = ["objdump", "-d", "--no-show-raw-insn", "-w", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        return [line.split(":")[0].strip() for line in process.stdout if line.endswith("\tcpuid\n")]


def cpu_info(cpu_class: CpuClass) -> str:
    """/proc/cpuinfo of a machine of the class."""
    hidden = FLAGS.keys() - KEPT[cpu_class]
    return re.sub(
        r"^flags\s*:.*$",
        lambda line: " ".join(word for word in line[0].split(" ") if word not in hidden),
        CPU_INFO.read_text(),
        flags=re.MULTILINE,
    )


def main() -> int:
    """Runs a command on the masked CPU, and gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cpu_class", type=CpuClass, choices=list(KEPT))
    parser.add_argument("--sites", type=Path, help="keep there what is found in libraries; torch takes a minute")
    packages = ["onnxruntime", "openvino", "torch", "numpy", "av"]
    parser.add_argument("--packages", nargs="+", default=packages, help="whose libraries are deceived")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    if reason := impossible_because(given.cpu_class):
        parser.error(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = given.sites or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        variables = environment(given.cpu_class, folder, given.packages)
        file = Path(name) / "cpuinfo"
        file.write_text(cpu_info(given.cpu_class))
        command = given.command
        if os.getuid() == 0:
            mount = f'mount --bind "{file}" {CPU_INFO} && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        else:
            print("not root: programs that read /proc/cpuinfo see the CPU as it is", file=sys.stderr)
        return subprocess.run(command, env=os.environ | variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
