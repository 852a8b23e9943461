"""The signature of one file: whose, where it goes, and the reason why there is none. Knows no format of signatures."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from mutoscope_engines.names import no_such

from ..errors import BackendUnavailableError, ProvenanceError, RequestError
from ..provenance.keys import Signer, default_path, make_signer
from ..provenance.layers import TURNED_OFF, Layer
from ..provenance.signature import MISSING, is_available, sidecar_of, sign
from .destination import find_place, publish, refusal, remove, temporary_name
from .frames import VideoHeader
from .written import size_and_sha256

AUTO, ON, OFF = "auto", "on", "off"
WAYS = (AUTO, ON, OFF)


class Signing:
    """Signs a finished file before it gets its name.

    Attributes:
        sidecar: where the signature goes, if the format cannot hold it.

    Raises:
        RequestError: there is no such way to sign.
        BackendUnavailableError: it was asked for, and c2pa-python is not installed, or there is no place for a key.
        ProvenanceError: the key is unsafe or damaged.
        OutputError: the signature beside the file cannot be written there.
    """

    def __init__(self, target: Path, wanted: str | Signer, *, is_folder: bool) -> None:
        self._target = target
        self._ending = ".png" if is_folder else target.suffix.lower()
        self._signer, self._why_none = _chosen(wanted, target)
        self._old = None if is_folder else sidecar_of(target)
        self.sidecar = self._old if self._signer else None
        if self.sidecar is not None:
            find_place(self.sidecar, is_folder=False)
            self._temporary = temporary_name(self.sidecar)

    def apply(self, temporary: Path, header: VideoHeader, *, watermarked: bool) -> bool:
        """Signs a finished file, or the pictures of a folder; true if that changed it.

        Raises:
            ProvenanceError: the key is not fit. The finished work is kept, and the message says where.
        """
        if self._signer is None:
            return False
        said: dict[str, Any] = {"watermarked": watermarked, "has_footage": header.has_footage} | _recipe(header)
        try:
            for file in sorted(temporary.glob("*.png")) if temporary.is_dir() else [temporary]:
                self._sign(file, said | {"content_sha256": size_and_sha256(file)[1]}, self._signer)
        except ProvenanceError as error:
            name = f"{self._target.stem}-unsigned-{secrets.token_hex(3)}{self._target.suffix}"
            kept = temporary.with_name(name)
            os.rename(temporary, kept)
            raise ProvenanceError(f"{error}. What was finished is in {kept}, not signed") from error
        return self.sidecar is None

    def publish(self) -> None:
        """Gives the signature beside the file its name. That of a file that was replaced goes: it would not fit."""
        if self.sidecar is not None:
            publish(self._temporary, self.sidecar)
        elif self._old is not None:
            self._old.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes what was not published, if there is anything."""
        if self.sidecar is not None:
            remove(self._temporary)

    def layer(self) -> Layer:
        """What came of it."""
        if self._signer is None:
            return Layer(False, self._why_none)
        return Layer(True, "in the file" if self.sidecar is None else f"in {self.sidecar.name}")

    def _sign(self, file: Path, said: dict[str, Any], signer: Signer) -> None:
        if self.sidecar is not None:
            sign(file, self._ending, self._temporary, signer, said)
            return
        signed = file.with_name(f"{file.name}.signed")
        try:
            sign(file, self._ending, signed, signer, said)
            os.replace(signed, file)
        finally:
            remove(signed)


def _chosen(wanted: str | Signer, target: Path) -> tuple[Signer | None, str]:
    """Who signs, or why nobody does."""
    if not isinstance(wanted, Signer) and wanted not in WAYS:
        raise RequestError(no_such("way to sign", str(wanted), WAYS))
    if wanted == OFF:
        return None, TURNED_OFF
    if not is_available():
        if wanted == AUTO:
            return None, MISSING
        raise BackendUnavailableError(f"the file cannot be signed: {MISSING}")
    if isinstance(wanted, Signer):
        return wanted, ""
    try:
        return make_signer(default_path()), ""
    except BackendUnavailableError as error:
        if wanted == ON:
            raise
        return None, str(error)
    except OSError as error:
        if wanted == ON:
            raise refusal(error, default_path()) from error
        return None, f"the key cannot be kept in {default_path()}: {error.strerror}"


def _recipe(header: VideoHeader) -> dict[str, Any]:
    """What the header says of the video's making, where that is an object in JSON."""
    try:
        facts = json.loads(header.recipe)
    except ValueError:
        return {}
    return {"made": facts} if isinstance(facts, dict) else {}
