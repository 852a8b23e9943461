"""`mutoscope verify`: what is given against what is known of it. Knows the kinds of what can be given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import RequestError
from ..terminal import tell
from .arguments import Parser
from .verify_file import add_trust, is_video_or_picture, verify_file


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
    if arguments.trust and kind.verify is not verify_file:
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
    add_trust(parser)
    return parser


def _bundle(target: Path, arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(target, verify=False)
    for name in bundle.verify():
        tell(f"ok  {name}")
    tell(f"{bundle.root}: {len(bundle.manifest.files)} files match the manifest, sha256 {bundle.sha256}")
    return 0


KINDS = (  # the first that fits
    Kind("a video or picture", is_video_or_picture, verify_file),
    Kind("the folder of a bundle", Path.is_dir, _bundle),
)
