"""Compiles an engine in a process of its own: a crash, a kill for lack of memory or Ctrl-C ends that process alone.

Knows processes and the lines between them. Knows nothing of caches, or of what is compiled.

The library cannot be told to stop within a graph, and does not give all its memory back. A process can be killed at any
moment, gives everything back, and starts with a peak of zero, which is what makes `host_peak_bytes` true.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import errors
from ..cache.identity import EngineIdentity
from ..errors import EngineError, MutoscopeError, OutOfMemoryError, out_of_memory
from ..system.child_python import child_python
from ..telemetry import OPT_OUT
from .builder import Compiled, compile_engine

TICK_S = 0.25


def compile_in_process(
    graph: Path,
    destination: Path,
    library_name: str,
    identity: EngineIdentity,
    *,
    on_tick: Callable[[], None] = lambda: None,
) -> Compiled:
    """`compile_engine` in a new process, which dies with this call, however that ends, and with this process.

    Args:
        on_tick: called several times a second; what it raises stops the build.

    Raises:
        MutoscopeError: what `compile_engine` raises.
        EngineError: the compiler crashed.
        BackendUnavailableError: this program is frozen, and can start no interpreter.
        OutOfMemoryError: the system killed it.
    """
    order = {
        "graph": str(graph),
        "destination": str(destination),
        "library_name": library_name,
        "identity": asdict(identity),
    }
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(
            child_python("-P", "-m", __name__),
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=said,
            env={**os.environ, **OPT_OUT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            **own_group(),
        )
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # it ended at once, and says why below
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()  # and left open: its end tells the process that this one is gone
            while _is_running(process):
                on_tick()
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.kill()
            process.wait()
        answer.seek(0)
        said.seek(0)
        return _result(process.returncode, answer.read(), said.read().decode(errors="replace"), graph)


def own_group() -> dict[str, Any]:
    """For a process whose Ctrl-C is for this one to answer."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    """Waits for a tick, or for the end. Ctrl-C inside of `wait` with a timeout could leave a lock held for ever."""
    until = time.monotonic() + TICK_S
    while (running := process.poll() is None) and time.monotonic() < until:
        time.sleep(TICK_S / 10)
    return running


def _result(code: int, answer: bytes, said: str, graph: Path) -> Compiled:
    name = f"{graph.parent.name}/{graph.name}"
    if code == 0:
        values = json.loads(answer)
        if "compiled" in values:
            return Compiled(**values["compiled"])
        raise getattr(errors, values["error"])(values["message"])
    if code == -9:
        raise OutOfMemoryError(
            f"the compiler was killed while it built {name}, most likely for lack of memory: it needs two to three "
            "times the size of the weights. Close other programs, or build on a larger machine"
        )
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    raise EngineError(f"the compiler ended with code {code} while it built {name}: {last[0]}")


def _main() -> None:
    """The other end: one order in, one answer out."""
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints is not an answer
    try:
        result: dict[str, Any] = {"compiled": asdict(_compile(order))}
    except MutoscopeError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        exhausted = out_of_memory(f"building {order['graph']}", "no more memory was available")
        result = {"error": type(exhausted).__name__, "message": str(exhausted)}
    with answer:
        json.dump(result, answer)


def _compile(order: dict[str, Any]) -> Compiled:
    return compile_engine(
        Path(order["graph"]),
        Path(order["destination"]),
        order["library_name"],
        EngineIdentity.from_json(order["identity"]),
    )


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    _main()
