"""A C2PA manifest over a finished file, and what becomes of it when it is read again. Knows c2pa-python.

Nothing here uses the network: neither a time stamp is fetched, nor what a stranger's manifest names by an address.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailableError, ProvenanceError
from ..version import __version__
from .keys import Signer
from .tag import contains, source_type

EMBEDDED = {
    ".mp4": "video/mp4", ".mov": "video/quicktime", ".gif": "image/gif", ".webp": "image/webp", ".png": "image/png",
}  # fmt: skip
BESIDE = {".mkv": "video/x-matroska", ".webm": "video/webm", ".npy": "application/octet-stream"}
SIDECAR_ENDING = ".c2pa"
FACTS = "org.mutoscope.video"

TRUSTED, VALID, INVALID, NONE, UNCHECKED = "trusted", "valid", "invalid", "none", "unchecked"
MISSING = "c2pa-python is not installed; run: pip install 'mutoscope[provenance]'"

# The box that describes a manifest store: JUMBF (ISO 19566-5) with C2PA's UUID, whose first bytes are its name.
_MANIFEST_BEGINS = b"jumdc2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"

_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},  # for a GIF it took seconds, and four times the size of the file
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


@dataclass(frozen=True)
class Verdict:
    """What the signature of a file says.

    Attributes:
        state: TRUSTED: as it was signed, by somebody whose root is known; VALID: as it was signed, by somebody unknown;
            INVALID: changed since; NONE; or UNCHECKED: c2pa-python is not installed.
        signer: the organisation that the certificate names.
        detail: what is wrong, or where the signature is.
        facts: what the file says of its making, where Mutoscope made it.
    """

    state: str
    signer: str = ""
    detail: str = ""
    facts: dict[str, Any] | None = None


def is_available() -> bool:
    """Whether c2pa-python is installed; imports nothing."""
    return find_spec("c2pa") is not None


def sidecar_of(path: Path) -> Path | None:
    """Where the manifest of a file goes whose format cannot hold one."""
    return path.with_name(path.name + SIDECAR_ENDING) if path.suffix.lower() in BESIDE else None


def sign(source: Path, ending: str, target: Path, signer: Signer, said: dict[str, Any]) -> None:
    """Writes the signed file, or the manifest alone where the format cannot hold one.

    Args:
        source: the finished file; stays as it is.
        ending: one of `EMBEDDED` or `BESIDE`.
        target: the new file.
        signer: who signs.
        said: facts on the making of the file, as JSON has them; `watermarked` and `has_footage` are among them.

    Raises:
        ProvenanceError: the signer's key or certificates are not fit.
        OSError: a file cannot be read or written.
    """
    c2pa = _library()
    try:
        with c2pa.Builder(json.dumps(_manifest(said)), _context()) as builder:
            if ending in EMBEDDED:
                with source.open("rb") as read, target.open("w+b") as write:
                    builder.sign(_signer(signer), EMBEDDED[ending], read, write)
            else:
                builder.set_no_embed()
                with source.open("rb") as read, open(os.devnull, "w+b") as copy:
                    target.write_bytes(builder.sign(_signer(signer), BESIDE[ending], read, copy))
    except c2pa.C2paError as error:
        raise ProvenanceError(f"the file cannot be signed: {error}; check the key and its certificates") from error


def check(path: Path, roots: Sequence[str] = ()) -> Verdict:
    """Reads and checks the signature in a file or beside it.

    Args:
        path: a file of any format.
        roots: certificates in PEM that are trusted to say who signs.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_available():
        return Verdict(UNCHECKED, detail=MISSING)
    c2pa = _library()
    sidecar = path.with_name(path.name + SIDECAR_ENDING)
    data = sidecar.read_bytes() if sidecar.is_file() else None
    kinds = EMBEDDED | BESIDE
    try:
        with path.open("rb") as file, _reader(c2pa, file, kinds.get(path.suffix.lower()), data, roots) as reader:
            return _verdict(reader, str(sidecar.name) if data else "in the file")
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):
        if contains(path, _MANIFEST_BEGINS):
            return Verdict(INVALID, detail="there is one, but the file around it is damaged")
        return Verdict(NONE)
    except c2pa.C2paError as error:
        return Verdict(INVALID, detail=f"it cannot be read: {error}")


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise BackendUnavailableError(f"signing needs c2pa-python: {MISSING}") from error
    return c2pa


def _context(roots: Sequence[str] = ()) -> Any:
    c2pa = _library()
    trust = {"trust": {"trust_anchors": "".join(roots)}} if roots else {}
    return c2pa.Context(settings=c2pa.Settings.from_dict(_SETTINGS | trust))


def _signer(signer: Signer) -> Any:
    c2pa = _library()
    if isinstance(signer.key, str):
        info = c2pa.C2paSignerInfo(signer.algorithm, signer.chain.encode(), signer.key.encode(), None)
        return c2pa.Signer.from_info(info)
    algorithm = getattr(c2pa.C2paSigningAlg, signer.algorithm.upper())
    return c2pa.Signer.from_callback(signer.key, algorithm, signer.chain)


def _manifest(said: dict[str, Any]) -> dict[str, Any]:
    agent = {"name": "Mutoscope", "version": __version__}
    term = source_type(has_footage=bool(said.get("has_footage")))
    actions = [{"action": "c2pa.created", "digitalSourceType": term, "softwareAgent": agent}]
    if said.get("watermarked"):
        actions.append({"action": "c2pa.watermarked.unbound"})
    return {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}, {"label": FACTS, "data": said}],
    }


def _reader(c2pa: Any, file: Any, kind: str | None, data: bytes | None, roots: Sequence[str]) -> Any:
    return c2pa.Reader(kind, file, data, context=_context(roots))


def _verdict(reader: Any, place: str) -> Verdict:
    manifest = reader.get_active_manifest() or {}
    signer = manifest.get("signature_info", {}).get("issuer", "")
    facts = next((each["data"] for each in manifest.get("assertions", []) if each["label"] == FACTS), None)
    state = {"Trusted": TRUSTED, "Valid": VALID}.get(reader.get_validation_state(), INVALID)
    if state != INVALID:
        return Verdict(state, signer, place, facts)
    results = (reader.get_validation_results() or {}).get("activeManifest", {})
    codes = [each["code"] for each in results.get("failure", []) if each["code"] != "signingCredential.untrusted"]
    return Verdict(INVALID, signer, ", ".join(codes))
