"""A Ray cluster of two nodes on this machine, on which a batch is interrupted and started again, and then loses an
actor and a node. A program of its own, to be run in a network namespace that has loopback alone; prints what came of
it as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

STORE = 100 * 2**20  # bytes; nothing goes through it


def main(jobs: str, out: Path) -> None:
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=STORE)
        command = [sys.executable, "-m", "mutoscope", "batch", jobs, str(out), "--json", "--quiet", "--workers", "2"]
        arguments = [*command, "--ray", cluster.address]
        interrupted = ctrl_c(started(arguments), out)
        batch = started(arguments)
        until(lambda: len(working(out)) == 2)
        killed = min(working(out))
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(working(out) - {killed}) == 2)  # another was started in its place
        cluster.remove_node(second, allow_graceful=False)
        output, errors = batch.communicate(timeout=240)
        print(json.dumps({"code": batch.returncode, "output": output, "errors": errors, "interrupted": interrupted}))
    finally:
        cluster.shutdown()


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ctrl_c(batch: subprocess.Popen[str], out: Path) -> dict[str, object]:
    """Interrupts a batch whose actors work. Gives how it ended, and what it left unfinished."""
    until(lambda: len(working(out)) == 2)
    batch.send_signal(signal.SIGINT)
    _, errors = batch.communicate(timeout=120)
    left = [path.name for folder in ("claims", "making") for path in (out / folder).iterdir()]
    return {"code": batch.returncode, "errors": errors, "left": left}


def working(out: Path) -> set[int]:
    """The processes that hold a claim; a name that is gone again was one for a moment."""
    found = set()
    for claim in out.glob("claims/*"):
        try:
            found.add(int(claim.read_text("utf-8").split("-")[1]))
        except (FileNotFoundError, IndexError):
            continue
    return found


def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "the workers did not come"
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
