"""What a file says of its origin, layer by layer, each found without the others. Knows files, and no command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendUnavailableError, ProvenanceError
from ..video_files import decoded_frames
from . import signature
from .keys import default_path, read_signer
from .layers import SIGNATURE, TAG, WATERMARK
from .signature import INVALID, TRUSTED, UNCHECKED, VALID, Verdict
from .tag import has_tag
from .watermark import BITS, LEAST_BITS, Reading, read

# Of several pictures' signatures, the one that counts.
_WORST_FIRST = (INVALID, UNCHECKED, signature.NONE, VALID, TRUSTED)


@dataclass(frozen=True)
class Report:
    """What was found in a file, or in a folder of pictures.

    Attributes:
        tag: whether its metadata has the words "AI-generated" as Mutoscope writes them.
        watermark: what was read from its frames; `None` where they cannot be decoded.
        signature: the verdict on its signature; of a folder, the worst of its pictures.
    """

    tag: bool
    watermark: Reading | None
    signature: Verdict

    @property
    def layers(self) -> list[str]:
        """The names of those that say that the file is AI-generated."""
        signed = self.signature.state in (TRUSTED, VALID) and self.signature.facts is not None
        marked = self.watermark is not None and self.watermark.found
        return [name for name, there in ((TAG, self.tag), (WATERMARK, marked), (SIGNATURE, signed)) if there]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: for each layer what was found, and the names of those that say AI-generated."""
        read = self.watermark and asdict(self.watermark) | {
            "of": BITS, "found": self.watermark.found, "chance": self.watermark.chance,
        }  # fmt: skip
        return {"layers": self.layers, TAG: self.tag, WATERMARK: read, SIGNATURE: asdict(self.signature)}

    def describe(self) -> dict[str, str]:
        """A sentence for each layer."""
        return {
            TAG: "says AI-generated" if self.tag else "none",
            WATERMARK: _of_watermark(self.watermark),
            SIGNATURE: _of_signature(self.signature),
        }


def is_pictures(path: Path) -> bool:
    """Whether a path is that of a folder of PNGs."""
    return path.is_dir() and any(path.glob("*.png"))


def examine(path: Path, roots: Sequence[str] = ()) -> Report:
    """Looks for each layer in a file of any origin, or in a folder of PNGs.

    Args:
        path: a video or picture that FFmpeg decodes, an array of frames, or a folder of PNGs.
        roots: certificates in PEM that are trusted to say who signs, beside this installation's own.

    Raises:
        OSError: it cannot be read.
    """
    roots = [*roots, *_own_root()]
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    verdicts = [signature.check(file, roots) for file in files]
    worst = min(verdicts, key=lambda verdict: _WORST_FIRST.index(verdict.state))
    return Report(has_tag(path), _watermark(files), worst)


def _own_root() -> list[str]:
    """Of the key that this installation signs with; none while it has none that is safe."""
    try:
        signer = read_signer(default_path()) if signature.is_available() else None
    except (BackendUnavailableError, ProvenanceError):
        return []
    return [signer.root] if signer else []


def _watermark(files: Sequence[Path]) -> Reading | None:
    if files[0].suffix.lower() == ".npy":
        try:
            frames = np.load(files[0], mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            return None
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            return None
        return read(np.asarray(frame)[None] for frame in frames)
    import av

    try:
        return read(frame[None] for file in files for frame in decoded_frames(file))
    except (av.FFmpegError, IndexError):  # no such format, or no pictures in it
        return None


def _of_watermark(reading: Reading | None) -> str:
    if reading is None:
        return "not looked for: FFmpeg cannot decode the frames"
    if not reading.frames:
        return "not looked for: the frames are too small"
    counted = f"{reading.bits} of {BITS} bits in {reading.frames} frames"
    if reading.found:
        return f"found, {counted}; in a video without it the chance of that is {reading.chance:.0e}"
    return f"not found, {counted}; {LEAST_BITS} would be needed"


def _of_signature(verdict: Verdict) -> str:
    who = verdict.signer or "nobody named"
    return {
        TRUSTED: f"as it was signed, by {who}, who is known here ({verdict.detail})",
        VALID: f"as it was signed, by {who}, whom no certificate known here confirms ({verdict.detail})",
        INVALID: f"does not fit: {verdict.detail}",
        UNCHECKED: f"not checked: {verdict.detail}",
    }.get(verdict.state, "none")
