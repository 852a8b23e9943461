"""The records of a cache as they were at one moment: which engine serves, or what the nearest lacks.

Knows records and identities. Knows nothing of the folder that they were read from but its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineMissingError
from .identity import EngineIdentity
from .record import EngineRecord

BUILD_IT = "Build it for this GPU and these sizes"


@dataclass(frozen=True)
class EngineCatalogue:
    """The engines that this installation built.

    Attributes:
        folder: where they are.
        records: the most recently used first.
    """

    folder: Path
    records: tuple[EngineRecord, ...]

    def find(self, wanted: EngineIdentity) -> EngineRecord:
        """The record of the engine that serves with the least memory.

        Raises:
            EngineMissingError: there is none; says what the nearest lacks.
        """
        serving = [record for record in self.records if not record.identity.misses(wanted)]
        if serving:
            return min(serving, key=lambda record: record.report.activation_bytes)
        raise EngineMissingError(self._miss(wanted))

    def _miss(self, wanted: EngineIdentity) -> str:
        capabilities = ", ".join(f"sm{number}" for number in wanted.compute_capabilities)
        said = f"no engine in {self.folder} fits this GPU ({capabilities}) in {wanted.precision}"
        misses = [(record.identity.misses(wanted), record.report.graph) for record in self.records]
        if not misses:
            return f"{said}: this installation has not built any. {BUILD_IT}"
        nearest, graph = min(misses, key=lambda miss: ("files" in miss[0], len(miss[0])))
        parts = "; ".join(f"{component}: {why}" for component, why in nearest.items())
        return f"{said}; the closest one, for the {graph}, differs in {parts}. {BUILD_IT}"
