"""Whatever asks the command line to end, it tidies up first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from mutoscope import cli

ENDING = [signal.SIGINT, *cli.ENDING_SIGNALS]


def command(monkeypatch: pytest.MonkeyPatch, run: Callable[[list[str]], int]) -> None:
    """Adds a row to the table of commands."""
    monkeypatch.setitem(sys.modules, "pretended_command", SimpleNamespace(main=run))
    monkeypatch.setitem(cli.COMMANDS, "pretended", ("pretended_command:main", "", ""))


@pytest.fixture
def tidied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A command that sends itself the signal named by its argument, and takes a moment to tidy up."""
    steps: list[str] = []

    def run(argv: list[str]) -> int:
        number = signal.Signals(int(argv[0]))
        try:
            os.kill(os.getpid(), number)
            for _ in range(100):
                time.sleep(0.01)
            steps.append("not interrupted")
        finally:
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            steps.append("tidied up")
        return 0

    command(monkeypatch, run)
    before = [signal.getsignal(number) for number in ENDING]
    yield steps
    assert [signal.getsignal(number) for number in ENDING] == before


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_interrupts_once_and_the_host_gets_its_handlers_back(
    tidied: list[str], capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """The same signal comes twice when a terminal closes: from the shell, and from the system."""
    assert cli.main(["pretended", str(int(number))]) == 130
    assert tidied == ["tidied up"]
    assert capsys.readouterr() == ("", "mutoscope: interrupted\n")


def test_nohup_is_heeded(tidied: list[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["pretended", str(int(signal.SIGHUP))]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert tidied == ["not interrupted", "tidied up"]


def test_a_command_may_run_in_a_thread_that_can_set_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, lambda argv: 0)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["pretended"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_windows_has_ctrl_break_in_the_place_of_a_lost_terminal() -> None:
    """Its `signal` has no SIGHUP, and SIGBREAK besides; see the documentation of Python's module."""
    code = (
        "import signal; del signal.SIGHUP; signal.SIGBREAK = 21; from mutoscope import cli; print(cli.ENDING_SIGNALS)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[<Signals.SIGTERM: 15>, 21]\n"
