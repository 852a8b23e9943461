"""The GPUs that engines are compiled for, and the arithmetic that each of them has.

Knows names and compute capabilities. Knows nothing of any library: which of them it compiles for, it says itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import TargetError
from .names import no_such
from .precisions import PRECISIONS


@dataclass(frozen=True)
class Target:
    """A kind of GPU. `compute_capability` is the two parts in one number: 89 for 8.9, 120 for 12.0."""

    name: str
    compute_capability: int

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of graphs that its tensor cores compute, the default first."""
        return tuple(
            each.name
            for each in PRECISIONS.values()
            if each.on_gpu and each.compute_capability <= self.compute_capability
        )


TARGETS = {
    target.name: target
    for target in (
        Target("rtx20", 75),
        Target("rtx30", 86),
        Target("rtx40", 89),
        Target("rtx50", 120),
        Target("gb10", 121),
    )
}


def find_target(name: str) -> Target:
    """The target of this name: one of `TARGETS`, or "sm" with a compute capability, such as "sm80" for an A100.

    Raises:
        TargetError: there is none of this name; names the nearest and lists those there are.
    """
    if name in TARGETS:
        return TARGETS[name]
    number = re.fullmatch(r"sm([1-9][0-9]{1,2})", name)
    if number and (capability := int(number[1])) >= 75:
        named = (target for target in TARGETS.values() if target.compute_capability == capability)
        return next(named, Target(name, capability))
    known = no_such("target", name, list(TARGETS))
    raise TargetError(f"{known}, or smNN with a compute capability of 75 or more, such as sm80")
