"""`mutoscope provenance keys`: whose key signs the videos of this installation."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError, ProvenanceError, RequestError
from ..output.destination import refusal
from ..provenance.keys import Signer, default_path, describe, keep_signer, make_signer, read_signer, signer_of
from ..provenance.signature import TRUSTED, VALID, check, sign
from ..terminal import format_facts, tell
from .arguments import Parser, one_of


def main(argv: Sequence[str]) -> int:
    """Shows the key's certificate, writes its root to a file, or takes another key."""
    parser = Parser(
        "provenance",
        "Shows whose key signs the videos of this installation. The first signed video makes one that is valid here "
        "alone; a company gives its own with --chain and --key.",
    )
    parser.add_argument("what", metavar="keys", type=one_of("thing to show", ("keys",)), help="the key that signs")
    parser.add_argument(
        "--export-root", metavar="FILE", type=Path, help="write the root's certificate, for `mutoscope verify --trust`"
    )
    parser.add_argument("--chain", metavar="FILE", type=Path, help="certificates (PEM) to sign with: own one first")
    parser.add_argument("--key", metavar="FILE", type=Path, help="their private key (PEM, no password)")
    arguments = parser.parse(argv)
    path = default_path()
    if (arguments.chain is None) != (arguments.key is None):
        raise RequestError("--chain and --key belong together; give both")
    try:
        if arguments.chain:
            keep_signer(_tried(signer_of(_text(arguments.chain), _text(arguments.key))), path)
        signer = make_signer(path) if arguments.export_root else read_signer(path)
    except OSError as error:
        raise refusal(error, path) from error
    if signer is None:
        tell(f"there is no key yet; the first signed video makes one in {path}")
        return 0
    if arguments.export_root:
        try:
            arguments.export_root.write_text(signer.root, encoding="ascii", newline="\n")
        except OSError as error:
            raise refusal(error, arguments.export_root) from error
    tell(format_facts({"key": path, **describe(signer)}))
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error


def _tried(signer: Signer) -> Signer:
    """The same signer, once it has signed something that is found to be signed.

    Raises:
        ProvenanceError: C2PA does not take its certificates.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.npy"
        path.write_bytes(b"signed to try the key")
        sign(path, ".npy", path.with_name("trial.npy.c2pa"), signer, {})
        verdict = check(path, [signer.root])
    if verdict.state not in (TRUSTED, VALID):
        raise ProvenanceError(f"C2PA does not take what these certificates sign: {verdict.detail}")
    return signer
