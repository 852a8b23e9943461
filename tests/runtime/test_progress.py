from __future__ import annotations

import errno
import io
import os
import pty
from contextlib import suppress

import pytest
from mutoscope.pipeline import StepEvent
from mutoscope.progress import Progress


class Terminal(io.StringIO):
    """Says that it is a terminal, and shows what one would show."""

    def isatty(self) -> bool:
        return True

    def line(self) -> str:
        shown: list[str] = []
        at = 0
        for character in self.getvalue():
            if character == "\r":
                at = 0
            else:
                shown[at : at + 1] = character
                at += 1
        return "".join(shown).rstrip()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int, total: int) -> StepEvent:
    return StepEvent(number, total, lambda: None)


@pytest.fixture(autouse=True)
def width_of_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "fileno", lambda self: -1)


def test_a_line_shows_stage_count_bar_elapsed_and_remaining_time():
    terminal, clock = Terminal(), Clock()
    with Progress(terminal, clock=clock) as progress:
        progress.on_stage("condition")
        assert terminal.line() == "encoding the prompt"
        clock.now += 5
        progress.on_stage("denoise")
        assert terminal.line() == "denoising"
        clock.now += 30 + 100  # loading, and the first of four steps of 100 s
        progress.on_step(step(1, 4))
        assert terminal.line() == f"denoising 1/4 [{'#' * 10}{'.' * 30}] 2:10"
        clock.now += 100
        progress.on_step(step(2, 4))
        assert terminal.line() == f"denoising 2/4 [{'#' * 20}{'.' * 20}] 3:50, 3:20 left"
        progress.on_stage("decode")
        assert terminal.line() == "decoding"


def test_decoded_frames_are_counted():
    terminal, clock = Terminal(), Clock()
    progress = Progress(terminal, clock=clock)
    progress.on_stage("decode")
    assert terminal.line() == "decoding"
    clock.now += 3600
    progress.on_frames(1, 9)
    assert terminal.line().startswith("decoding 1/9 [#")
    assert terminal.line().endswith("] 1:00:00")
    clock.now += 1200
    progress.on_frames(5, 9)
    assert terminal.line().startswith("decoding 5/9 [#")
    assert terminal.line().endswith("1:20:00, 20:00 left")
    progress.on_frames(9, 9)
    assert "9/9" in terminal.line()


def test_the_line_is_gone_at_the_end_even_after_an_error():
    terminal = Terminal()
    with pytest.raises(RuntimeError), Progress(terminal) as progress:
        progress.on_step(step(1, 2))
        raise RuntimeError
    assert terminal.line() == ""


def test_a_shorter_line_leaves_nothing_of_a_longer_one():
    terminal = Terminal()
    progress = Progress(terminal)
    progress.on_step(step(1, 2))
    progress.start("writing")
    assert terminal.line() == "writing"


@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_is_written_where_there_is_no_terminal_or_quiet_was_asked(quiet: bool):
    stream = Terminal() if quiet else io.StringIO()
    with Progress(stream, quiet=quiet) as progress:
        progress.start("encoding the prompt")
        progress.on_step(step(1, 1))
        progress.on_frames(5, 5)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("columns", [10, 30, 60, 200])
def test_no_line_is_as_wide_as_the_terminal(columns: int):
    """A real pseudo-terminal of that width."""
    import fcntl
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        progress = Progress(stream)
        progress.on_stage("denoise")
        progress.on_step(step(6, 10))
        progress.on_step(step(7, 10))
    content = ""
    with suppress(OSError):  # there is no more, and nobody left to write it
        while True:
            content += os.read(controller, 10_000).decode()
    os.close(controller)
    lengths = [len(line) for line in content.split("\r")]
    assert max(lengths) < columns
    assert ("#" in content) == (columns >= 30)


def test_a_terminal_that_was_closed_ends_the_line_and_nothing_else():
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with Progress(Closed()) as progress:
        progress.start("encoding the prompt")
        progress.on_frames(5, 5)


def test_a_tick_shows_how_long_it_has_taken_where_nothing_is_counted():
    terminal, clock = Terminal(), Clock()
    with Progress(terminal, clock=clock) as progress:
        progress.start("building 1/4 denoiser")
        clock.now += 75
        progress.tick()
        assert terminal.line() == "building 1/4 denoiser 1:15"
