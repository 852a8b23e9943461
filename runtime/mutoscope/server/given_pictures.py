"""The pictures that clients send: read once, and kept as PNG for as long as the videos that follow them.

Each video has a folder of its own, and each picture a file that is named after its pixels. What else was in the file of
a client, such as the place where a photograph was taken, is not kept. Knows files, and no queue.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mutoscope_engines.system.portable_files import sync

from ..errors import RequestError
from ..pictures import Picture, read_picture
from ..request import PICTURES, VideoRequest


def pictures_of(request: VideoRequest) -> dict[str, Picture]:
    """The pictures of a request that were read, by its fields."""
    given = {name: getattr(request, name) for name in PICTURES}
    return {name: picture for name, picture in given.items() if isinstance(picture, Picture)}


def stated(request: VideoRequest) -> dict[str, Any]:
    """A request as JSON has it, with the size and the hash of a picture in the place of its pixels."""
    identities: dict[str, Any] = {name: picture.identity for name, picture in pictures_of(request).items()}
    return replace(request, **identities).to_dict()


class GivenPictures:
    """The pictures of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, id: str, pictures: Mapping[str, Picture]) -> None:
        """Puts the pictures of a new video on the disk, to survive a power cut, before its row names them.

        Raises:
            OSError: the disk is full, or refuses.
        """
        from PIL import Image

        if not pictures:
            return
        folder = self._folder / id
        self._folder.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        for picture in pictures.values():
            with self.place(id, picture.identity).open("wb") as file:
                Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)  # half the time of the default
                file.flush()
                os.fsync(file.fileno())
        for each in (folder, self._folder, self._folder.parent):
            sync(each)

    def place(self, id: str, identity: str, ending: str = ".png") -> Path:
        """The file of a picture, or one beside it with another ending."""
        return self._folder / id / f"{identity.rpartition(':')[2]}{ending}"

    def request_of(self, id: str, said: Mapping[str, Any]) -> VideoRequest:
        """The inverse of `stated`, with the pictures of a video.

        Raises:
            RequestError: a picture is not there any more as it was sent.
        """
        read: dict[str, Any] = {name: self._read(id, name, said[name]) for name in PICTURES if name in said}
        return replace(VideoRequest.from_dict(said), **read)

    def ids(self) -> list[str]:
        """The videos that have pictures, or had some when a server was killed."""
        return os.listdir(self._folder) if self._folder.exists() else []

    def remove(self, id: str) -> None:
        """Removes those of one video, if it has any."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / id)

    def _read(self, id: str, name: str, identity: str) -> Picture:
        with suppress(OSError, RequestError):  # whose words would show clients a path of this machine
            picture = read_picture(self.place(id, identity).read_bytes(), name=name)
            if picture.identity == identity:
                return picture
        raise RequestError(f"{name} is not in the data folder of the server any more as it was sent; send it again")
