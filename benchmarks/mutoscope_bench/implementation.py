"""What does the work of a case: the seam between measuring and whatever is measured.

Knows the work and how an implementation answers. Knows nothing of processes, or of any library that does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.interface import interface_of
from mutoscope.errors import RequestError
from mutoscope.planning.plan import Plan
from mutoscope_engines.symbols import sized
from numpy.typing import NDArray

from .measuring import Run


@dataclass(frozen=True)
class Work:
    """What one process is to do, complete and as plain values: it travels as JSON."""

    kind: str  # as a case has it
    bundle: str
    checkpoint: str | None  # in the Diffusers layout, of the same model
    plan: dict[str, Any]  # of the request: every value resolved
    request: dict[str, Any]  # as it was given, for an implementation that plans itself
    text_tokens: int  # of a forward, or as many as a text encoder reads
    texts: dict[str, list[int]]  # the inputs of the denoiser that text encoders feed, and their shapes without branches
    threads: int
    batch: int  # videos of a run: 1, or more for the scenario Offline and in bulk
    result: str  # file that takes the output of the first run: `.npy`
    video: str  # file that takes the video
    runtime: dict[str, Any]  # fields of `RuntimeOptions` that were given

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `work_of` is the way back."""
        return asdict(self)

    def planned(self) -> Plan:
        """The plan again, for what takes one, such as the writer of videos."""
        return Plan.from_dict(self.plan)


@dataclass(frozen=True)
class Variant:
    """An implementation as one process runs it, in the words of the result."""

    implementation: str
    precision: str

    def __str__(self) -> str:
        return f"{self.implementation} {self.precision}"


def text_lengths(bundle: Bundle, tokens: int) -> dict[str, int]:
    """The symbols of the lengths of texts, for so many tokens, or as many as an encoder reads where it reads fewer."""
    return {text.symbol: min(tokens, text.max_sequence_length) for text in bundle.manifest.texts}


def text_shapes(bundle: Bundle, tokens: int) -> dict[str, list[int]]:
    """The inputs of the denoiser that text encoders feed, all of them, and the shape of a row of each."""
    manifest, lengths = bundle.manifest, text_lengths(bundle, tokens)
    inputs = interface_of(manifest.graphs_of(manifest.experts[0].role, manifest.precisions()[0])).inputs
    fed = [name for text in manifest.texts for name in text.feeds.values()]
    return {name: list(sized(inputs[name].shape[1:], lengths)) for name in fed}


class Implementation(ABC):
    """Something that can do the work of cases. One file each, one row in `implementations.PEERS`."""

    name: str
    variants: tuple[str, ...]  # its precisions, the one that others' errors are measured against first
    import_statement: str  # Python that loads its libraries
    files_of: str = "bundle"  # "bundle" or "checkpoint": what loading reads
    on_device: bool = False  # whether it runs on a GPU; of ours, the backend says

    @abstractmethod
    def unavailable_because(self) -> str | None:
        """Why it cannot run here, with the next step; `None` when it can. Imports none of its libraries."""

    @abstractmethod
    def cannot(self, work: Work, precision: str) -> str | None:
        """Why it cannot do this work, though it is here; `None` when it can."""

    def prepare(self, work: Work) -> None:
        """Makes what must be there before loading and is no part of it, such as weights under other names."""
        return

    @abstractmethod
    def load(self, work: Work, precision: str) -> Run:
        """Loads the model, in the process that will run it; its libraries are imported.

        The run's answer may hold, beside its own `elapsed_s`: `stages`, seconds by stage; `steps`, seconds of each
        denoising step; `sha256` of the output; `notes`, by stage what its figure does not say. The first run writes
        the output to `work.result`: of a clip and of a decode uint8 `[T, H, W, 3]`, of a forward the velocity f32
        `[B, C, F, h, w]`, branch by branch, without guidance. An implementation that cannot give it writes none, and
        says why in `note`.
        """


def forward_feeds(work: Work) -> dict[str, NDArray[np.float32]]:
    """The inputs of a forward, the same for every implementation: `latents` `[C, F, h, w]`, what text encoders feed,
    such as `prompt_embeds` `[B, L, D]`, and `timestep` `[1]`."""
    random = np.random.default_rng(0)
    shape = tuple(work.plan["latents_shape"])
    branches = len(work.plan["guidance_weights"])
    return {
        "latents": random.standard_normal(shape, np.float32),
        **{name: random.standard_normal((branches, *shape), np.float32) for name, shape in work.texts.items()},
        "timestep": np.asarray([700.0], np.float32),
    }


def decode_latents(work: Work) -> NDArray[np.float32]:
    """The latents f32 `[C, F, h, w]` of a decode, the same for every implementation."""
    return np.random.default_rng(0).standard_normal(tuple(work.plan["latents_shape"]), np.float32)


def batch_plans(work: Work) -> Iterator[tuple[int, Path]]:
    """The seed and the file of each video of a batch: seeds count up from the plan's."""
    file = Path(work.video)
    for index in range(work.batch):
        yield work.plan["seed"] + index, file.with_name(f"{file.stem}-{index}{file.suffix}")


def needs_checkpoint(work: Work) -> str | None:
    """Why a peer that reads checkpoints cannot work without one."""
    if work.checkpoint is None:
        return "needs the checkpoint that the bundle was exported from; name it with --checkpoint FOLDER"
    return None


def work_of(values: Mapping[str, Any]) -> Work:
    """The work again, from what a process was given.

    Raises:
        RequestError: a field is missing or unknown.
    """
    try:
        return Work(**values)
    except TypeError as error:
        raise RequestError(f"this is no work of a benchmark: {error}") from error
