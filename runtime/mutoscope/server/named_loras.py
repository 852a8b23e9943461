"""The LoRAs that clients may name: files of one folder that the operator chose. Clients see names, and never paths.

A row keeps the hash of each file, because the operator may replace one before its video is made, or made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mutoscope_engines.names import no_such
from mutoscope_engines.safetensors_file import SUFFIXES

from ..errors import RequestError
from ..planning.plan import Plan
from ..request import LORAS, VideoRequest
from ..values.parameters import HASHES

_HASH = "sha256"  # beside path and strength of a LoRA
Hashes = Sequence[tuple[str, str | None]]  # of each LoRA: its field, and its hash or `None`


class NamedLoras:
    """Those of one folder, or none where there is no folder. A file that is added later counts too."""

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder)

    def names(self) -> list[str]:
        """Those that there are; none where the folder cannot be read."""
        try:
            return sorted(self.paths())
        except OSError:
            return []

    def paths(self) -> dict[str, Path]:
        """Each file by its name.

        Raises:
            OSError: the folder cannot be read.
        """
        if self._folder is None:
            return {}
        return {path.name: path for path in self._folder.iterdir() if path.suffix in SUFFIXES and path.is_file()}

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
            there = self.paths()
        except OSError as error:  # whose words would show clients a path of this machine
            raise RequestError(f"{parameter} must be left out: the folder of LoRAs cannot be read") from error
        if name not in there:
            raise RequestError(
                f"{parameter} must have names of this server's files; {no_such('LoRA', name[:80], sorted(there))}"
            )
        return str(there[name])


def with_hashes(said: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """A request as its row has it: each LoRA with the hash of the file that its plan read."""
    hashes = iter(lora.sha256 for lora in plan.loras)
    return {**said, **{name: [each | {_HASH: next(hashes)} for each in said[name]] for name in LORAS if name in said}}


def without_hashes(said: Mapping[str, Any]) -> tuple[dict[str, Any], Hashes]:
    """The inverse of `with_hashes`; the values of a client may be of any type.

    Raises:
        RequestError: a hash is none.
    """
    values, hashes = dict(said), list[tuple[str, str | None]]()
    for name in LORAS:
        if isinstance(given := said.get(name), list):
            loras = [dict(each) if isinstance(each, dict) else each for each in given]
            hashes += [(name, _hash(name, each.pop(_HASH, None)) if isinstance(each, dict) else None) for each in loras]
            values[name] = loras
    return values, hashes


def _hash(parameter: str, said: Any) -> str | None:
    found = HASHES.parse(said) if isinstance(said, str) else None
    if said is not None and not isinstance(found, str):
        raise RequestError(
            f"{parameter} must have the SHA-256 of a file, 64 hexadecimal digits, as {_HASH}, or none; got {said!r:.80}"
        )
    return found


def refuse_other_loras(plan: Plan, hashes: Hashes) -> None:
    """
    Raises:
        RequestError: a file is another now than the one that was asked for.
    """
    for lora, (parameter, sha256) in zip(plan.loras, hashes, strict=True):
        if sha256 not in (None, lora.sha256):
            raise RequestError(
                f"{parameter} has {lora.file}, which is another file now than the one that was asked for; that one has "
                f"the SHA-256 {sha256}. Put it back; to use the new file, name the LoRA again without this hash"
            )


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
