"""A receipt against its video: whether the file is the one that was made, and whether it can be made again.

Knows receipts and how videos are read back. Knows nothing of batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope_engines.difference import psnr_of_mean_square, squares
from mutoscope_engines.system.file_hash import file_sha256
from mutoscope_engines.system.machine import usable_cores

from ..errors import BundleError, MutoscopeError, RequestError
from ..making import Observer, make_file
from ..output.frames import Frames
from ..output.written import WrittenFile
from ..pipeline import Pipeline
from ..planning.plan import Plan
from ..request import OutputOptions, RuntimeOptions
from ..values.loras import Lora
from ..video_files import decoded_frames
from .receipts import LIST
from .task import RECEIPTS

# By precision: the least PSNR of the same video on two backends. tests/test_same_as_diffusers.py holds fp32 to it.
# In the others, rounding makes another video of some prompts (docs/quantisation.md), so there is no bound to hold.
LEAST_PSNR_DB = {"fp32": 45.0}
NEEDED = ("file", "sha256", "content_sha256", "plan", "runtime", "output")


class ReceiptError(MutoscopeError):
    """A video is not what its receipt says."""

    exit_code = 3


@dataclass(frozen=True)
class Receipt:
    """One receipt, and the folder that its file is relative to."""

    folder: Path
    facts: dict[str, Any]

    @property
    def file(self) -> Path:
        """The video."""
        return self.folder / str(self.facts["file"])

    @property
    def plan(self) -> Plan:
        """
        Raises:
            RequestError: it is of another version of Mutoscope.
        """
        return Plan.from_dict(self.facts["plan"])


def is_receipt(path: Path) -> bool:
    """Whether a path is that of a receipt, of a list of them, or of a batch's folder."""
    return (path.is_file() and path.suffix in (".json", ".jsonl")) or (path / LIST).is_file()


def read_receipts(path: Path) -> list[Receipt]:
    """One receipt, or all of a list or of a batch's folder.

    Raises:
        RequestError: it cannot be read, or is none.
    """
    path = path / LIST if path.is_dir() else path
    folder = path.parent.parent if path.parent.name == RECEIPTS else path.parent
    try:
        texts = [text for text in path.read_text("utf-8").split("\n") if text.strip()]
        found = [json.loads(text) for text in texts]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} is not a receipt: {error}") from error
    for facts in found:
        if not isinstance(facts, dict) or set(NEEDED) - facts.keys():
            raise RequestError(f"{path} is not a receipt of a batch: it lacks one of {', '.join(NEEDED)}")
    return [Receipt(folder, facts) for facts in found]


def check_file(receipt: Receipt) -> None:
    """
    Raises:
        ReceiptError: the video is missing, or is not the one that was made.
    """
    if not receipt.file.is_file():
        raise ReceiptError(f"{receipt.file} is missing; run the batch again to make it")
    found = file_sha256(receipt.file)
    if found != receipt.facts["sha256"]:
        raise ReceiptError(
            f"{receipt.file} was changed after it was made: its sha256 is {found}, and the receipt has "
            f"{receipt.facts['sha256']}"
        )


def options_of(receipt: Receipt, given: dict[str, Any]) -> RuntimeOptions:
    """How the video of a receipt was run, so far as this machine can, with what is given in its place.

    Args:
        given: fields of `RuntimeOptions`.
    """
    made = RuntimeOptions.from_dict(receipt.facts["runtime"])
    if given.get("backend", made.backend) != made.backend:  # which may have other precisions and memory
        made = replace(made, precision=None, memory_limit=None)
    threads = min(made.threads or 1, usable_cores())
    return replace(made, **{"threads": threads, **given})


def remake(receipt: Receipt, pipeline: Pipeline, path: Path, observer: Observer) -> WrittenFile:
    """Makes the video of a receipt again, as another file.

    Raises:
        BundleError: the bundle is another.
        MutoscopeError: it cannot be made.
    """
    plan, sha256 = receipt.plan, pipeline.bundle.sha256
    if plan.bundle_sha256 != sha256:
        raise BundleError(
            f"the video was made from the bundle with sha256 {plan.bundle_sha256}, and {pipeline.bundle.root} has "
            f"{sha256}; name the folder of that bundle"
        )
    output = OutputOptions(**receipt.facts["output"])
    files: dict[str, Any] = dict(receipt.facts.get("files", {}))
    files |= {name: tuple(Lora(**each) for each in given) for name, given in receipt.facts.get("loras", {}).items()}
    request = plan.to_request(**files)
    return make_file(pipeline, request, path, output, observer).file


def difference_db(given: Path, expected: Path) -> float:
    """PSNR of two videos over all their pixels, in dB; infinite where all are equal.

    Raises:
        RequestError: they differ in size or length.
    """
    count = 0

    def pairs() -> Iterator[tuple[Frames, Frames]]:
        nonlocal count
        for one, other in zip_longest(_frames(given), _frames(expected)):
            if one is None or other is None or one.shape != other.shape:
                raise RequestError(f"{given.name} and {expected.name} differ in size or in their number of frames")
            count += one.size
            yield one, other

    off, _ = squares(pairs())
    return psnr_of_mean_square(off / count) if count else math.inf


def _frames(path: Path) -> Iterator[Frames]:
    """Each frame, uint8 `[H, W, 3]`."""
    return iter(np.load(path, mmap_mode="r")) if path.suffix == ".npy" else decoded_frames(path)
