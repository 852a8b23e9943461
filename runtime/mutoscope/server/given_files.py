"""The files that clients send: read once, and kept for as long as the videos that follow them.

Each video has a folder of its own, and each file in it a name that follows from its content. A picture is kept as PNG,
so what else was in the file of a client, such as the place where a photograph was taken, is not. A clip is kept as it
was sent, because its frames take many times as much space. Knows files, and no queue.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from mutoscope_engines.system.portable_files import sync

from ..clips import Clip, read_clip
from ..errors import RequestError
from ..pictures import Picture, read_picture
from ..request import FILES, REFERENCES, VideoRequest
from .data_folder import remove_folder

MOST_CLIP_PIXELS = 2**31  # of all frames of a clip: half a minute of full HD at 30 frames per second

Given = Picture | Clip
Files = Mapping[str, Sequence[Given]]  # by the fields of a request; all but the references have one

_CLIP = " video sha256:"  # in what is said of a clip
_NAMES = {"video": "given_video", REFERENCES: "reference"}  # where contents of a video are not named as the field is


def files_of(request: VideoRequest) -> dict[str, tuple[Given, ...]]:
    """The files of a request that were read, by its fields."""
    given = {name: getattr(request, name) for name in FILES}
    listed = {name: tuple(each) if isinstance(each, (list, tuple)) else (each,) for name, each in given.items()}
    return {
        name: each for name, each in listed.items() if each and all(isinstance(one, (Picture, Clip)) for one in each)
    }


def as_fields(files: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What there is of each field, as `VideoRequest` has it: a tuple of references, and one of anything else."""
    return {name: tuple(each) if name == REFERENCES else each[0] for name, each in files.items()}


def identity_of(given: Given) -> str:
    """What a row says of a file: the size of its frames, and the hash of a picture's pixels or of a clip's bytes."""
    if isinstance(given, Picture):
        return given.identity
    assert isinstance(given.source, bytes)  # this server opens no path
    return f"{given.head.width}x{given.head.height}{_CLIP}{hashlib.sha256(given.source).hexdigest()}"


def is_clip(identity: str) -> bool:
    """Whether a file is a clip, by what a row says of it."""
    return _CLIP in identity


def stated(request: VideoRequest) -> dict[str, Any]:
    """A request as JSON has it, with what is said of a file in its place."""
    return replace(request, **as_fields(_each(files_of(request), identity_of))).to_dict()


def named(files: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Any]]:
    """What each file is called among the contents of a video, and the file."""
    for name, each in files.items():
        if name == REFERENCES:
            yield from ((f"{_NAMES[name]}_{number}", one) for number, one in enumerate(each, 1))
        else:
            yield _NAMES.get(name, name), each[0]


def said_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of each file, by what it is called among the contents of a video."""
    return dict(named(_listed(row)))


def ending_of(given: Given) -> str:
    """How the name of a file ends that holds this."""
    return ".png" if isinstance(given, Picture) else kind_of_clip(given.source)[0]


def kind_of_clip(begin: Any) -> tuple[str, str]:
    """The ending and the media type of a video file, by its first 64 bytes."""
    if begin[4:8] == b"ftyp":
        return ".mp4", "video/mp4"
    if begin[:4] == b"\x1aE\xdf\xa3":
        return (".webm", "video/webm") if b"webm" in begin[:64] else (".mkv", "video/x-matroska")
    return (".avi", "video/x-msvideo") if begin[8:12] == b"AVI " else (".video", "application/octet-stream")


class GivenFiles:
    """The files of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, id: str, files: Files) -> None:
        """Puts the files of a new video on the disk, to survive a power cut, before its row names them.

        Raises:
            OSError: the disk is full, or refuses.
        """
        if not files:
            return
        folder = self._folder / id
        self._folder.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        for each in files.values():
            for given in each:
                with self.place(id, identity_of(given)).open("wb") as file:
                    _write(given, file)
                    file.flush()
                    os.fsync(file.fileno())
        for path in (folder, self._folder, self._folder.parent):
            sync(path)

    def place(self, id: str, identity: str, ending: str = "") -> Path:
        """The file of what a row says, or one beside it with another ending."""
        own = ".clip" if is_clip(identity) else ".png"
        return self._folder / id / f"{identity.rpartition(':')[2]}{ending or own}"

    def request_of(self, id: str, said: Mapping[str, Any]) -> VideoRequest:
        """The inverse of `stated`, with the files of a video.

        Raises:
            RequestError: a file is not there any more as it was sent.
        """
        read = {name: [self.read(id, name, one) for one in each] for name, each in _listed(said).items()}
        return replace(VideoRequest.from_dict(said), **as_fields(read))

    def ids(self) -> list[str]:
        """The videos that have files, or had some when a server was killed."""
        return os.listdir(self._folder) if self._folder.exists() else []

    def remove(self, id: str) -> None:
        """Removes those of one video, if it has any."""
        remove_folder(self._folder / id)

    def read(self, id: str, name: str, identity: str) -> Given:
        """A file of a video, by what its row says of it.

        Args:
            name: of the file, for errors.

        Raises:
            RequestError: it is not there any more as it was sent.
        """
        with suppress(OSError, RequestError):  # whose words would show clients a path of this machine
            content = self.place(id, identity).read_bytes()
            found = sent_clip(content, name) if is_clip(identity) else read_picture(content, name=name)
            if identity_of(found) == identity:
                return found
        raise RequestError(f"{name} is not in the data folder of the server any more as it was sent; send it again")


def sent_clip(content: bytes, name: str) -> Clip:
    """Opens a clip that a client sent.

    Raises:
        RequestError: it is no video that can be read.
    """
    return read_clip(content, name=name, most_pixels=MOST_CLIP_PIXELS)


def _listed(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a row says of the files of each field: the inverse of `as_fields`."""
    return {name: row[name] if name == REFERENCES else [row[name]] for name in FILES if name in row}


def _each(files: Files, change: Any) -> dict[str, list[Any]]:
    return {name: [change(given) for given in each] for name, each in files.items()}


def _write(given: Given, file: BinaryIO) -> None:
    from PIL import Image

    if isinstance(given, Picture):
        Image.fromarray(given.pixels).save(file, "PNG", compress_level=1)  # half the time of the default
    else:
        assert isinstance(given.source, bytes)
        file.write(given.source)
