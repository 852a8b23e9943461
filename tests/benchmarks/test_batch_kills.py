"""The short form of the measurement: workers that are killed lose no video, and double none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.batch_kills import FAULTS

ROOT = Path(__file__).parents[2]


def test_killed_workers_lose_nothing_and_leave_nothing_over() -> None:
    command = [sys.executable, "-m", "benchmarks.batch_kills", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stderr.splitlines()[-1])
    assert row["kills"] > 0 and row["videos"] == 6
    assert not any(row[fault] for fault in FAULTS)
