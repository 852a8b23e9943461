"""Ctrl-C between any two lines of what opens, lends and closes graphs leaves none lent, and none open for ever."""

from __future__ import annotations

import contextlib
import dis
import linecache
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from types import FrameType
from typing import Any

import pytest
from mutoscope import Pipeline, RuntimeOptions
from mutoscope.bundle.bundle import Bundle
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Plan
from mutoscope.running import loaded as code
from mutoscope.running.loaded import LoadedGraphs
from mutoscope_engines.session import SessionOptions
from mutoscope_engines.testing import FakeBackend

from tests.bundles import in_parts
from tests.runtime.running.functions import PROMPT

SECONDS = 20
Action = Callable[[LoadedGraphs, Plan], None]


class SizedBackend(FakeBackend):
    """One whose sessions serve one size alone, as engines do."""

    def shares_by(self, options: SessionOptions) -> Any:
        assert options.engine is not None
        return tuple(sorted(options.engine.shapes.items()))


TRACED = {code.__file__, contextlib.__file__}
# With these the interpreter begins to leave a `with`. It looks for signals only after the lock was released.
LEAVES_WITH = {dis.opmap[name] for name in ("LOAD_CONST", "SWAP", "PUSH_EXC_INFO")}


def interrupted_at(number: int, action: Callable[[], None]) -> bool:
    """Runs an action with a KeyboardInterrupt before one of the lines that it runs; whether there was one."""
    lines = count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line" and not leaves_with(frame) and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def leaves_with(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith("with ") and frame.f_code.co_code[frame.f_lasti] in LEAVES_WITH


def elsewhere(action: Callable[[], object]) -> None:
    """Runs it in another thread, which would wait for ever for a lock or a graph that this one never gave back."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()


def use(graphs: LoadedGraphs, plan: Plan) -> None:
    with graphs.use("denoiser", plan):
        pass


def use_at_another_size(graphs: LoadedGraphs, plan: Plan) -> None:
    """Closes what is idle and opens anew."""
    height, width = plan.geometry.latents_shape[2:]
    shape = (*plan.geometry.latents_shape[:2], width, height)
    use(graphs, replace(plan, geometry=replace(plan.geometry, latents_shape=shape)))


def fail_in_use(graphs: LoadedGraphs, plan: Plan) -> None:
    with pytest.raises(ZeroDivisionError), graphs.use("denoiser", plan):
        raise ZeroDivisionError


def close(graphs: LoadedGraphs, plan: Plan) -> None:
    graphs.close()


@pytest.mark.parametrize(
    ("before", "action", "keep"),
    [
        (None, use, True),
        (None, use, False),
        (use, use, True),
        (use, use_at_another_size, True),
        (None, fail_in_use, False),
        (use, fail_in_use, True),
        (use, close, True),
    ],
)
def test_after_ctrl_c_at_any_line_graphs_can_be_used_and_closed(
    make_bundle: Callable[..., Bundle], before: Action | None, action: Action, keep: bool
) -> None:
    bundle = in_parts(make_bundle)
    backend = SizedBackend()
    options = RuntimeOptions(backend=backend)
    with Pipeline(bundle, options) as pipeline:
        plan = pipeline.plan(PROMPT)
    plan = replace(plan, memory=replace(plan.memory, keep_loaded=keep))
    execution = Execution.choose(options, bundle)
    for number in count():
        graphs = LoadedGraphs(bundle, execution)
        if before is not None:
            before(graphs, plan)
        happened = interrupted_at(number, partial(action, graphs, plan))
        if not graphs.closed:
            elsewhere(partial(use, graphs, plan))
            assert backend.open_sessions == (2 if keep else 0), number
        elsewhere(graphs.close)
        assert (backend.open_sessions, backend.open_bindings) == (0, 0), number
        backend.sessions.clear()
        if not happened:
            break
    assert number > 3
