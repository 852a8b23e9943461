"""The LoRAs that clients may name: files of one folder that the operator chose. Clients see names, and never paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mutoscope_engines.names import no_such
from mutoscope_engines.safetensors_file import SUFFIXES

from ..errors import RequestError
from ..request import LORAS, VideoRequest


class NamedLoras:
    """Those of one folder, or none where there is no folder. A file that is added later counts too."""

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder)

    def resolved(self, request: VideoRequest) -> VideoRequest:
        """A request of a client with the files that it names.

        Raises:
            RequestError: there is no such file.
        """
        return self._changed(request, self._path)

    def named(self, request: VideoRequest) -> VideoRequest:
        """The inverse of `resolved`."""
        return self._changed(request, lambda name, path: Path(path).name)

    def _changed(self, request: VideoRequest, change: Any) -> VideoRequest:
        given: dict[str, Any] = {
            name: tuple(replace(lora, path=change(name, lora.path)) for lora in getattr(request, name))
            for name in LORAS
        }
        return replace(request, **given)

    def _path(self, parameter: str, name: str) -> str:
        if self._folder is None:
            raise RequestError(f"{parameter} must be left out: this server offers no LoRAs")
        # Compared with what is there, so that no name leads out of the folder.
        try:
            there = {path.name: path for path in self._folder.iterdir() if path.suffix in SUFFIXES and path.is_file()}
        except OSError as error:  # whose words would show clients a path of this machine
            raise RequestError(f"{parameter} must be left out: the folder of LoRAs cannot be read") from error
        if name not in there:
            raise RequestError(
                f"{parameter} must have names of this server's files; {no_such('LoRA', name[:80], sorted(there))}"
            )
        return str(there[name])


def checked_folder(folder: str | None) -> str | None:
    """The folder of `loras` in full, for processes that were started elsewhere too.

    Raises:
        RequestError: it is no folder.
    """
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise RequestError(f"loras must be a folder with LoRAs; got {folder!r}")
    return str(Path(folder).resolve())
