"""One line on a terminal that says how far a video is. Knows stages, steps and chunks. Knows nothing of files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

from .bundle.contract import STAGES
from .making import Observer
from .running.denoise import StepEvent


class Progress(Observer):
    """Redraws one line, and takes it away at the end of the `with`. Writes nothing where there is no terminal.

    Args:
        stream: where the line goes; standard error.
        quiet: write nothing even to a terminal.
        clock: seconds, from any start.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet = quiet
        self._stream = stream
        self._shown = not quiet and stream.isatty()
        self._clock = clock
        self._drawn = 0  # columns that the line takes now
        self._begin("")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def start(self, stage: str) -> None:
        """Names what begins now."""
        self._begin(stage)
        self._draw(stage)

    def on_stage(self, stage: str) -> None:
        """For `make_file`."""
        self.start(STAGES[stage])

    def on_step(self, event: StepEvent) -> None:
        """For `make_file`."""
        self._advance(event.step, event.total)

    def tick(self) -> None:
        """Says how long what was started last has taken, where nothing can be counted."""
        self._draw(f"{self._stage} {duration(self._clock() - self._stage_started)}")

    def on_frames(self, done: int, total: int) -> None:
        """For `make_file`."""
        self._advance(done, total)

    def show(self, line: str) -> None:
        """Draws a line of the caller's own in the place of the last."""
        self._draw(line)

    def clear(self) -> None:
        """Takes the line away, so that something else can be printed."""
        if self._drawn:
            self._put("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _begin(self, stage: str) -> None:
        self._stage, self._stage_started = stage, self._clock()
        self._first: tuple[int, float] | None = None  # what was done at the first count, and when that was

    def _advance(self, done: int, total: int) -> None:
        now = self._clock()
        # The first count pays for loading too, so the pace is that of what came after it.
        first_done, first_at = self._first = self._first or (done, now)
        before = f"{self._stage} {done:>{len(str(total))}}/{total} "
        after = f" {duration(now - self._stage_started)}"
        if done > first_done:
            after += f", {duration((now - first_at) / (done - first_done) * (total - done))} left"
        room = min(40, self._columns() - len(before) - len(after) - 2)
        filled = room * done // total
        bar = f"[{'#' * filled}{'.' * (room - filled)}]" if room >= 4 else ""
        self._draw(before + bar + after)

    def _draw(self, line: str) -> None:
        if not self._shown:
            return
        line = line[: self._columns()]
        self._put("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # the terminal was closed
            self._shown = False

    def _columns(self) -> int:
        """All but the last column, where some terminals wrap. The terminal of this stream: the others may be files."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or 80) - 1


def duration(seconds: float) -> str:
    """As "1:02:03" or "2:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
