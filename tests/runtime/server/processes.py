"""`mutoscope serve` in a process of its own, to be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SERVE = ("-m", "mutoscope", "serve")


class Process:
    """A server that listens, or died before it did; `url` is empty then."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stdin is not None
        self.process = process
        line = process.stdout.readline()
        self.address: dict[str, str] = json.loads(line) if line else {"url": ""}
        self.url = self.address["url"]

    def end(self) -> int:
        """As a parent does that ends itself."""
        self.process.stdin.close()  # type: ignore[union-attr]
        return self.process.wait(60)


@contextmanager
def serving(folder: Path, *arguments: str, program: Sequence[str] = SERVE, **more: Any) -> Iterator[Process]:
    """A server with its data in a folder.

    Args:
        program: what Python runs; `arguments` follow.
        more: for `Popen`.
    """
    command = [sys.executable, *program, "--port", "0", "--data", str(folder), "--free-disk", "1kB", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, **more) as process:
        try:
            yield Process(process)
        finally:
            process.kill()
