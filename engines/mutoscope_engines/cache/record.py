"""What is kept beside each engine: what it was made from, what it measures, and the mark of who built it.

Knows the record as a value and as signed JSON. Knows nothing of the folder it lies in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .identity import EngineIdentity, canonical_json
from .installation_key import is_signed, sign


@dataclass(frozen=True)
class EngineReport:
    """What the build of one engine came to."""

    graph: str  # its name in the bundle: the role, and which part of it
    target: str  # a name, or several with commas where one engine serves them
    precision: str
    activation_bytes: int  # device memory while it runs at the largest shapes, without weights, inputs and outputs
    weight_bytes: int  # on the device
    engine_bytes: int  # of the file
    build_s: float
    host_peak_bytes: int  # of the compiling process


@dataclass(frozen=True)
class EngineRecord:
    """What the cache keeps of one engine, signed."""

    identity: EngineIdentity
    report: EngineReport
    sha256: str  # of the engine file

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EngineRecord:
        """The record that `dataclasses.asdict` and JSON made of one. Anything else is a KeyError or TypeError."""
        return cls(
            identity=EngineIdentity.from_json(values["identity"]),
            report=EngineReport(**values["report"]),
            sha256=values["sha256"],
        )


def encode_record(record: EngineRecord, key: bytes) -> bytes:
    """The record as JSON, with this key's signature."""
    values = asdict(record)
    signed = {"record": values, "signature": sign(canonical_json(values), key)}
    return json.dumps(signed, indent=1, sort_keys=True).encode() + b"\n"


def decode_record(content: bytes, key: bytes) -> EngineRecord | None:
    """The record, or `None` where it is damaged, of another version, or not signed with this key."""
    try:
        signed = json.loads(content)
        values = signed["record"]
        if not is_signed(canonical_json(values), signed["signature"], key):
            return None
        return EngineRecord.from_json(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
