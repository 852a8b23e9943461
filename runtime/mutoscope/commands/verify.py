"""`mutoscope verify`: what is given against what is known of it. Knows the kinds of what can be given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import OutputError, ProvenanceError, RequestError
from ..provenance.report import examine, is_pictures
from ..provenance.signature import INVALID
from ..terminal import format_facts, tell
from .arguments import Parser


@dataclass(frozen=True)
class Kind:
    """Something that can be verified.

    Attributes:
        name: for a person.
        fits: whether a path is of this kind.
        verify: checks one, prints what it finds, and returns the exit code.
    """

    name: str
    fits: Callable[[Path], bool]
    verify: Callable[[Path, argparse.Namespace], int]


def main(argv: Sequence[str]) -> int:
    """Prints each check that holds, and stops with an error at the first that does not."""
    arguments = _parser().parse(argv)
    target: Path = arguments.target or bundle_path()
    kind = next((kind for kind in KINDS if kind.fits(target)), None)
    if kind is None:
        raise RequestError(f"{target} is nothing that can be verified; name {' or '.join(each.name for each in KINDS)}")
    if arguments.trust and kind.verify is not _file:
        raise RequestError("--trust is for the signature of a video or picture")
    return kind.verify(target, arguments)


def _parser() -> Parser:
    parser = Parser(
        "verify",
        "Checks the size and hash of every file in a bundle; or tells whether a video or picture says that it is "
        "AI-generated: by its metadata, a watermark and a signature. Exits with code 3 if a check fails.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        type=Path,
        help="folder of a bundle, a video or picture, or a folder of PNGs (default: the built-in bundle)",
    )
    parser.add_argument(
        "--trust", metavar="FILE", type=Path, help="certificates (PEM) that are trusted to say who signed a video"
    )
    return parser


def _bundle(target: Path, arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(target, verify=False)
    for name in bundle.verify():
        tell(f"ok  {name}")
    tell(f"{bundle.root}: {len(bundle.manifest.files)} files match the manifest, sha256 {bundle.sha256}")
    return 0


def _file(target: Path, arguments: argparse.Namespace) -> int:
    try:
        roots = [arguments.trust.read_text("ascii", "replace")] if arguments.trust else []
        report = examine(target, roots)
    except OSError as error:
        raise OutputError(f"{error.filename or target} cannot be read: {error.strerror}") from error
    tell(format_facts(report.describe()))
    if report.signature.state == INVALID:
        raise ProvenanceError(f"{target} is not as it was signed: {report.signature.detail}")
    found = " and ".join(report.layers)
    tell(f"{target}: AI-generated, by its {found}" if found else f"{target}: nothing was found, which proves nothing")
    return 0


KINDS = (  # the first that fits
    Kind("a video or picture", lambda path: path.is_file() or is_pictures(path), _file),
    Kind("the folder of a bundle", Path.is_dir, _bundle),
)
