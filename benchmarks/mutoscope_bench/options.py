"""What a benchmark is asked for. Knows names and defaults. Knows nothing of how anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCH = 4  # videos of the scenario Offline
SCENARIOS = {
    "SingleStream": "one video at a time, for latency",
    "Offline": f"{BATCH} videos at once, for throughput",
}


@dataclass(frozen=True)
class Options:
    """What was asked for. `cases` and `against` are names of `CASES` and `PEERS`."""

    cases: tuple[str, ...]
    against: tuple[str, ...] = ()
    bundle: Path | None = None
    checkpoint: Path | None = None
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ()  # all that the bundle has and the backend runs, when empty
    scenario: str = "SingleStream"
    rounds: int = 5
    threads: int = 1
    quick: bool = False
    models: Path | None = None  # folder that keeps models with random weights
    request: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What two results must share to be compared, and what a reader wants to know."""
        return {
            "cases": list(self.cases),
            "against": list(self.against),
            "rounds": self.rounds,
            "threads": self.threads,
            "quick": self.quick,
            "request": self.request,
            "runtime": self.runtime,
            "batch": self.batch,
        }

    @property
    def batch(self) -> int:
        """How many videos a clip makes in the scenario."""
        return BATCH if self.scenario == "Offline" else 1
