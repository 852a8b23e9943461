"""What a result says of the machine."""

from __future__ import annotations

import numpy
import pytest
from mutoscope_bench import machine_facts
from mutoscope_bench.machine_facts import describe


def test_versions_are_those_of_installed_packages_alone() -> None:
    assert describe(["numpy", "no-such-package"])["packages"] == {"numpy": numpy.__version__}


def test_cores_and_memory_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's share, not the machine that it is on."""
    monkeypatch.setattr(machine_facts, "usable_cores", lambda: 3)
    monkeypatch.setattr(machine_facts, "memory_bytes", lambda: 5)
    facts = describe([])
    assert (facts["cores"], facts["memory_bytes"]) == (3, 5)
