"""One request into one file, and what is known of it afterwards: the work that every command and server shares.

Knows the pipeline and the writer. Knows nothing of terminals, queues or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .output.frames import Frames
from .output.video import check_output, write_file
from .output.written import WrittenFile
from .pipeline import EncodedConditions, Pipeline, StepEvent
from .planning.plan import Plan
from .request import OutputOptions, VideoRequest


class Observer:
    """Is told how far a video is. A method that raises ends the work, and leaves no file behind."""

    def on_plan(self, plan: Plan) -> None:
        """Everything is decided; nothing has run."""

    def on_stage(self, stage: str) -> None:
        """A stage begins: "condition", "denoise" or "decode"."""

    def on_step(self, event: StepEvent) -> None:
        """A denoising step is done."""

    def on_frames(self, done: int, total: int) -> None:
        """The writer has taken `done` of `total` frames."""


@dataclass(frozen=True, kw_only=True)
class MadeVideo:
    """A finished video: its plan, its file, and the seconds of each stage ("write" among them)."""

    plan: Plan
    file: WrittenFile
    times_s: Mapping[str, float]


def make_file(
    pipeline: Pipeline,
    request: VideoRequest | str,
    path: Path | str,
    output: OutputOptions | None = None,
    observer: Observer | None = None,
    encoded: EncodedConditions | None = None,
) -> MadeVideo:
    """Makes a video and writes it as its frames are decoded; the file has its name only once it is whole.

    Args:
        pipeline: makes the frames.
        request: what to make, or only its prompt.
        path: as `mutoscope.output.video.write_file` has it.
        output: how to write it.
        observer: is told how far it is.
        encoded: what to keep of its prompts for the next video, as `Pipeline.stream` has it.

    Raises:
        OutputError: it cannot be written there; found before any work is done where that is possible.
        MutoscopeError: whatever `Pipeline.stream` raises.
    """
    output, observer = output or OutputOptions(), observer or Observer()
    check_output(path, **vars(output))
    with pipeline.stream(request, on_step=observer.on_step, on_stage=observer.on_stage, encoded=encoded) as stream:
        observer.on_plan(stream.plan)
        started = time.perf_counter()
        chunks = _counted(stream, stream.plan.header.num_frames, observer)
        file = write_file(path, chunks, stream.plan.header, **vars(output))
        write_s = time.perf_counter() - started - sum(stream.times.seconds.values())
    return MadeVideo(plan=stream.plan, file=file, times_s={**stream.times.seconds, "write": write_s})


def _counted(chunks: Iterator[Frames], total: int, observer: Observer) -> Iterator[Frames]:
    """The same chunks, each told once the writer has taken it and asks for the next."""
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        observer.on_frames(done, total)
