"""Frames into a file, which appears under its name only when it is whole.

Knows endings and codecs by name. How each format is written stands in a file of its own; where the file goes
is in `destination`. Knows nothing of how frames are made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope_engines.names import no_such

from ..errors import MutoscopeError, OutputError
from ..provenance.keys import Signer
from ..provenance.layers import SIGNATURE, TAG, WATERMARK
from ..values import checks
from . import AUTO, CODECS, ENDINGS, FORMATS, Format
from .destination import find_place, publish, refusal, remove, temporary_name
from .encoders import check_encoder
from .file_names import refuse_reserved
from .frames import Frames, VideoHeader, checked
from .marking import Marking, tag_layer
from .metadata import MINIMAL, at_level, refuse_unknown_level
from .signing import AUTO as SIGN_AUTO
from .signing import Signing
from .written import WrittenFile, size_and_sha256


def write_video(path: Path | str, chunks: Iterable[Frames], header: VideoHeader, **options: Any) -> Path:
    """Like `write_file`; gives the path alone."""
    return write_file(path, chunks, header, **options).path


def write_file(
    path: Path | str,
    chunks: Iterable[Frames],
    header: VideoHeader,
    *,
    codec: str = AUTO,
    metadata: str = MINIMAL,
    watermark: bool = True,
    sign: str | Signer = SIGN_AUTO,
) -> WrittenFile:
    """Writes frames as they come; no more than a chunk is held in memory, whatever the length of the video.

    A file of that name is replaced, once the new one is whole; a folder that has anything in it is refused. A link
    stays, and the file or folder that it leads to is written. Whatever stops the writing, Ctrl-C included, leaves the
    target as it was and no partial file beside it.

    Args:
        path: one of the endings in `FORMATS`, or a folder for PNGs: no ending, or a "/" at the end.
        chunks: uint8 `[n, H, W, 3]`, `T` frames in all.
        header: what is true of the whole video; `plan.header` of one that was made here.
        codec: one of `CODECS`.
        metadata: one of `LEVELS`: how much of the header's title and recipe the file holds.
        watermark: whether the frames get one, where their size and the format allow it.
        sign: one of `mutoscope.output.signing.WAYS`, or who signs. Before a signature is added, the file is hashed.

    Raises:
        OutputError: the format, codec or size cannot be written, or the place cannot take it.
        ShapeError: the chunks are not what the header says.
        RequestError: the header is none, or there is no such level or way to sign.
        ProvenanceError: the key to sign with is unsafe or not fit.
        BackendUnavailableError: it is to be signed, and c2pa-python is not installed.
    """
    told = at_level(header, metadata)
    kind, codec, target = _resolve(path, codec)
    place = find_place(target, is_folder=kind is FORMATS[""])
    module, _, function = kind.writer.partition(":")
    write = getattr(import_module(module), function)
    temporary = temporary_name(place)
    signing = Signing(target, sign, is_folder=kind is FORMATS[""])
    marking = Marking(kind, header, wanted=watermark)
    source = _Source(marking.frames(checked(chunks, header)))
    try:
        write(temporary, iter(source), told, codec)
        content = size_and_sha256(temporary)
        changed = signing.apply(temporary, told, watermarked=marking.layer().present)
        size, sha256 = size_and_sha256(temporary) if changed else content
        _publish(temporary, place)
        signing.publish()
    except Exception as error:
        # What failed after the source, such as closing the file, only followed from it.
        cause = source.error or _translated(error, target)
        if cause is error:
            raise
        raise cause from error
    finally:
        remove(temporary)
        signing.discard()
    layers = {TAG: tag_layer(kind), WATERMARK: marking.layer(), SIGNATURE: signing.layer()}
    return WrittenFile(target, size, sha256, content[1], layers, signing.sidecar)


def check_output(
    path: Path | str,
    codec: str = AUTO,
    *,
    metadata: str = MINIMAL,
    watermark: bool = True,
    sign: str | Signer = SIGN_AUTO,
) -> None:
    """Whether `write_file` could write there with these options, found out before any work is done.

    Raises:
        OutputError: it could not.
        RequestError: there is no such level of metadata or way to sign.
        ProvenanceError: the key to sign with is unsafe or damaged.
        BackendUnavailableError: it is to be signed, and c2pa-python is not installed.
    """
    refuse_unknown_level(metadata)
    checks.switch("watermark", watermark)
    check_format(path, codec)
    kind, _, target = _resolve(path, codec)
    find_place(target, is_folder=kind is FORMATS[""])
    Signing(target, sign, is_folder=kind is FORMATS[""])


def check_format(path: Path | str, codec: str = AUTO) -> None:
    """Whether a file of this ending can be written with this codec here, wherever it goes.

    Raises:
        OutputError: it cannot.
    """
    check_encoder(_resolve(path, codec)[1])


class _Source:
    """The chunks on their way to the encoder, whose own errors are told apart from the encoder's."""

    def __init__(self, chunks: Iterator[Frames]) -> None:
        self.error: BaseException | None = None
        self._chunks = chunks

    def __iter__(self) -> Iterator[Frames]:
        try:
            for chunk in self._chunks:
                yield np.ascontiguousarray(chunk)
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise


def _resolve(path: Path | str, codec: str) -> tuple[Format, str, Path]:
    text = os.fspath(path)
    refuse_reserved(text)
    target = Path(text)
    if not target.name:
        raise OutputError(f"{text!r} does not name a file; name one, such as out.mp4")
    is_folder = text.endswith((os.sep, os.altsep or os.sep))
    if target.name.lower() in FORMATS and not is_folder:
        raise OutputError(f"{text!r} is only an ending; give it a name, such as out{target.name}")
    ending = "" if is_folder else target.suffix.lower()
    if ending not in FORMATS:
        raise OutputError(
            f"{text!r} has the ending {ending!r}; a video can end with {ENDINGS}, or with / for a folder of PNGs; a "
            "single frame, with .png"
        )
    kind = FORMATS[ending]
    if codec == AUTO:
        return kind, kind.codecs[0], target
    if codec not in CODECS:
        raise OutputError(no_such("codec", codec, CODECS))
    if codec not in kind.codecs:
        homes = ", ".join(name or "a folder" for name, other in FORMATS.items() if codec in other.codecs)
        what = ending or "a folder"
        held = " or ".join(kind.codecs)
        raise OutputError(f"{what} cannot hold {codec}; it holds {held}, and {codec} goes into {homes}")
    return kind, codec, target


def _publish(temporary: Path, place: Path) -> None:
    if temporary.is_file():
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems report a full disk only here
    publish(temporary, place)


def _translated(error: Exception, target: Path) -> Exception:
    """An output error for what the system or FFmpeg refused; anything else as it is."""
    if isinstance(error, OSError):
        return refusal(error, target)
    if not isinstance(error, MutoscopeError) and type(error).__module__.startswith("av."):
        return OutputError(f"{target} cannot be written: the encoder refused it ({error}); try another codec or ending")
    return error
