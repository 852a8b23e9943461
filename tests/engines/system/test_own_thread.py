"""One thread makes all calls, from the first that asks to the last."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from mutoscope_engines.system.own_thread import OwnThread


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def wait_for_its_end(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(10)
    assert name not in names()


def test_an_error_reaches_the_one_who_asked_and_is_kept_nowhere() -> None:
    thread = OwnThread("errors")

    class Kept:
        def fail(self) -> None:
            raise ValueError("of the call")

    kept = Kept()
    there = weakref.ref(kept)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="of the call"):
            thread.run(kept.fail)
        del kept
        assert thread.run(lambda: 7) == 7
        assert there() is None
    finally:
        gc.enable()


def test_an_ended_thread_refuses_calls_at_once() -> None:
    thread = OwnThread("ended")
    thread.end()
    thread.end()
    wait_for_its_end("ended")
    with pytest.raises(RuntimeError, match="has ended"):
        thread.run(int)


def test_a_dropped_one_leaves_no_thread() -> None:
    thread = OwnThread("dropped")
    assert thread.run(threading.current_thread).name == "dropped"
    del thread
    wait_for_its_end("dropped")


def test_where_no_thread_starts_calls_run_in_that_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    thread = OwnThread("refused")
    assert not thread.started
    assert thread.run(threading.get_ident) == threading.get_ident()
