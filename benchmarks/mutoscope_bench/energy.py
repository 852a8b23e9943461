"""How much energy the machine takes, where it tells: RAPL of the processor packages, NVML of the GPUs.

Knows counters. What they count is the whole machine, whoever uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import nvml

POWERCAP = Path("/sys/class/powercap")
GPUS = "GPUs (NVML)"


def counters(powercap: Path = POWERCAP) -> dict[str, float]:
    """Joules since some start, by the name of what takes them; empty where nothing can be read."""
    found: dict[str, float] = {}
    # A package holds its parts ("intel-rapl:0:0"), which would be counted twice. AMD's carry the same name.
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:
            try:
                found[folder.name] = int((folder / "energy_uj").read_text("ascii")) / 1e6
            except (OSError, ValueError):
                continue  # readable by root alone on most systems
    gpus = nvml.energy_j()
    return found if gpus is None else found | {GPUS: gpus}


def difference_j(before: Mapping[str, float], after: Mapping[str, float], powercap: Path = POWERCAP) -> float | None:
    """Joules between two readings; `None` where there is no counter. One that began anew is taken at its range."""
    total = 0.0
    for name in before.keys() & after.keys():
        taken = after[name] - before[name]
        total += taken if taken >= 0 else taken + _range_j(powercap / name)
    return total if before.keys() & after.keys() else None


def why_not(powercap: Path = POWERCAP) -> str | None:
    """What keeps energy from being measured; `None` when something can be."""
    if counters(powercap):
        return None
    if any(powercap.glob("intel-rapl:*")):
        return f"energy: {powercap}/intel-rapl:*/energy_uj is readable by root alone"
    return "energy: this machine has no RAPL counters and no NVIDIA GPU that tells"


def _range_j(folder: Path) -> float:
    try:
        return int((folder / "max_energy_range_uj").read_text("ascii")) / 1e6
    except (OSError, ValueError):
        return 0.0
