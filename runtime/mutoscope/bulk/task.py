"""One video of a batch, the batch itself, and the names of its files. Plain values, which any process can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..request import OutputOptions, RuntimeOptions, VideoRequest
from .options import BatchOptions

VIDEOS, RECEIPTS, FAILED = "videos", "receipts", "failed"
SETTING = "setting.json"


@dataclass(frozen=True)
class Task:
    """One video to make.

    Attributes:
        id: the job's.
        repeat: which of the job's videos, from 1.
        line: the job's in the file of jobs, from 1.
        meta: what the job has there, to be handed through.
        request: the video, its seed included.
        key: says everything that decides the video: tasks of one key are one video.
        size: videos of one size run the same graphs in the same shapes.
        texts: videos of the same have the same prompts.
    """

    id: str
    repeat: int
    line: int
    meta: Any
    request: VideoRequest
    key: str
    size: tuple[int, ...]
    texts: str

    @property
    def name(self) -> str:
        """For a person."""
        return self.id if self.repeat == 1 else f"{self.id}, repeat {self.repeat}"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Everything that a worker needs to know.

    Attributes:
        out: the folder of the results, which all workers share.
        tasks: in the order of the input.
        bundle: the folder of the bundle.
        setting: what all videos of the folder have in common, as `key.setting_of` gives it.
        runtime: of one worker.
        output: how files are written.
        options: of the batch.
    """

    out: Path
    tasks: tuple[Task, ...]
    bundle: Path
    setting: Mapping[str, Any]
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    options: BatchOptions = field(default_factory=BatchOptions)

    def video(self, key: str) -> str:
        """The name of a finished video, relative to `out`."""
        return f"{VIDEOS}/{key}{self.options.ending}"


def receipt_name(key: str) -> str:
    """Of the receipt of a video, relative to the folder of the batch."""
    return f"{RECEIPTS}/{key}.json"


def failure_name(key: str, attempt: int) -> str:
    """Of the record of a failed attempt, relative to the folder of the batch."""
    return f"{FAILED}/{key}.{attempt}.json"
