"""Runs the parts, each in a process with a time limit, and writes the result after every one.

Knows processes and the file. Knows nothing of what a part does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.errors import OutputError
from mutoscope.version import __version__
from mutoscope_engines.system.child_python import child_python

from ..machine_facts import PACKAGES, describe
from .part import Facts, Part

GPU_PACKAGES = (*PACKAGES, "cuda-core", "cuda-bindings", "nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn-cu13")
LAST_LINES = 40  # of what a process that failed printed; where it was, if it crashed, is in them


@dataclass(frozen=True)
class Check:
    """What to run, and where the result goes. `spec` goes to every part, beside its own."""

    parts: Sequence[Part]
    spec: Mapping[str, Any]
    limit_s: int | None  # instead of the parts' own
    output: Path


def run(check: Check, tell: Callable[[str, Facts], object]) -> Facts:
    """Runs everything; the result is what was written last.

    Args:
        tell: told the name of each part and what it found.

    Raises:
        OutputError: the result cannot be written; nothing ran then.
        BackendUnavailableError: this program is frozen, and can start no interpreter; nothing was written then.
    """
    command = child_python("-P", "-m", f"{__package__}.worker")
    result: Facts = {
        "mutoscope": __version__,
        "machine": describe(GPU_PACKAGES),
        "request": dict(check.spec["request"]),
        "parts": {},
    }
    write(check.output, result)
    for part in check.parts:
        started = time.perf_counter()
        facts = _run_part(part, check, command)
        result["parts"][part.name] = {**facts, "seconds": round(time.perf_counter() - started, 2)}
        write(check.output, result)
        tell(part.name, facts)
    return result


def write(path: Path, result: Facts) -> None:
    """Writes the file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; name another file with --output") from error


def _run_part(part: Part, check: Check, command: Sequence[str]) -> Facts:
    order = {"function": part.function, "spec": {**check.spec, **part.spec}}
    limit_s = check.limit_s or part.limit_s
    process = subprocess.Popen(
        [*command, json.dumps(order)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        answer, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        return {"status": "failed", "reason": f"it took longer than {limit_s} s", "said": _last_lines(said)}
    finally:
        process.kill()  # Ctrl-C
    if process.returncode:
        return {"status": "failed", "reason": f"it ended with code {process.returncode}", "said": _last_lines(said)}
    facts: Facts = json.loads(answer)
    return facts


def _last_lines(said: bytes) -> list[str]:
    return said.decode(errors="replace").splitlines()[-LAST_LINES:]
