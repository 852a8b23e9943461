"""Which FFmpeg encoder stands for a codec, with what settings, and frames as it takes them. Knows PyAV."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mutoscope_engines.system.machine import cpu_flags
from numpy.typing import NDArray

from ..errors import OutputError

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class Encoder:
    """One of FFmpeg's encoders, and its options for good quality."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


# crf: lower is finer and larger.
ENCODERS = {
    "h264": Encoder("libx264", {"crf": "17", "preset": "medium"}),
    "av1": Encoder("libsvtav1", {"crf": "25", "preset": "6"}),
    "vp9": Encoder("libvpx-vp9", {"crf": "20", "b": "0", "cpu-used": "2", "row-mt": "1"}),
    "gif": Encoder("gif"),
    # quality: of 100; higher is finer and larger. From 4 of compression_level's 6 on, files hardly get smaller.
    "webp": Encoder("libwebp_anim", {"quality": "90", "compression_level": "4"}),
    "png": Encoder("png"),
}


def encoder_options(codec: str) -> dict[str, str]:
    """What FFmpeg's encoder is told. The same frames give the same file.

    With AVX-512, x264 reads memory that nobody wrote, unless the width is a multiple of 128: half of the files of one
    clip of 96x96 differed from the others. With AVX2 all were the same.
    """
    options = dict(ENCODERS[codec].options)
    if codec == "h264" and "avx512f" in cpu_flags():
        options["x264-params"] = "asm=AVX2"
    return options


def is_available(encoder: str) -> bool:
    """Whether there is a PyAV here that carries this encoder."""
    try:
        import av
    except ImportError:
        return False
    try:
        av.codec.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def check_encoder(codec: str) -> None:
    """Refuses a codec for which there is no encoder here; `npy` needs none.

    Raises:
        OutputError: names the codecs that it can.
    """
    if codec in ENCODERS and not is_available(ENCODERS[codec].name):
        there = [name for name, encoder in ENCODERS.items() if is_available(encoder.name)]
        raise OutputError(
            f"{codec} needs the encoder {ENCODERS[codec].name}, and the installed PyAV does not have it; available "
            f"codecs: {', '.join([*there, 'npy'])}. Choose one of these and an ending for it, or install "
            "another build of PyAV"
        )


def silence() -> None:
    """SVT-AV1 prints thirty lines a video, unless its variable says otherwise: for a process that is ours alone."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only


@contextmanager
def threads_as_they_were() -> Iterator[None]:
    """Around what opens an encoder. As root, SVT-AV1 makes the thread that opens it, and all of its own, real-time.

    Other programs on their cores, and other threads of this one, would then wait for the encoder, and what this process
    starts would inherit it.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.listdir("/proc/self/task")
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in (0, *(int(name) for name in os.listdir("/proc/self/task") if name not in before)):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, priority)


def open_container(target: Path, container: str, **options: str) -> av.container.OutputContainer:
    """A file to mux into. The same frames give the same file: without "bitexact" there would be random identifiers.

    FFmpeg takes what stands before a colon in a name for a protocol, unless it is "file".
    """
    import av

    return av.open(f"file:{target}", "w", format=container, options={"fflags": "+bitexact", **options})


def numbered_frames(chunks: Iterator[NDArray[np.uint8]], fps: Fraction) -> Iterator[av.VideoFrame]:
    """Chunks `[n, H, W, 3]` as single RGB frames with their time."""
    import av

    number = 0
    for chunk in chunks:
        for pixels in chunk:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, 1 / fps
            number += 1
            yield frame
