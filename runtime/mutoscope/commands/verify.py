"""`mutoscope verify`: what is given against what is known of it. Knows the kinds of what can be given."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..builtin import bundle_path
from ..bulk.remake import (
    LEAST_PSNR_DB,
    Receipt,
    ReceiptError,
    check_file,
    difference_db,
    is_receipt,
    options_of,
    read_receipts,
    remake,
)
from ..bundle.bundle import Bundle
from ..errors import RequestError
from ..pipeline import Pipeline
from ..progress import Progress
from ..request import RuntimeOptions
from ..terminal import tell
from .arguments import Parser, add_bundle, add_fields, given
from .verify_file import add_of_files, is_video_or_picture, verify_file


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
        raise RequestError(f"{target} cannot be verified; name {' or '.join(each.name for each in KINDS)}")
    if arguments.trust and kind.verify is not verify_file:
        raise RequestError("--trust is only for the signature of a video or picture; leave it out")
    if arguments.json and kind.verify is not verify_file:
        raise RequestError("--json is only for a video or picture; the exit code says whether others match")
    if kind.verify is not _receipts and (arguments.remake or arguments.bundle or given(arguments, RuntimeOptions)):
        raise RequestError("only the video of a receipt can be made again; name a receipt with --remake")
    return kind.verify(target, arguments)


def _parser() -> Parser:
    parser = Parser(
        "verify",
        "Checks the size and hash of every file in a bundle, or the video of a batch's receipt; or tells whether a "
        "video or picture says that it is AI-generated: by its metadata, a watermark and a signature. Exits with code "
        "3 if a check fails.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        type=Path,
        help="folder of a bundle; a receipt, receipts.jsonl, or the folder of a batch; a video or picture, or a folder "
        "of PNGs (default: the built-in bundle)",
    )
    add_of_files(parser)
    parser.add_argument(
        "--remake",
        action="store_true",
        help="make the video of the receipt again and compare: with the backend and options of the receipt, or others",
    )
    add_bundle(parser, "--bundle")
    add_fields(parser, RuntimeOptions)
    return parser


def _bundle(target: Path, arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(target, verify=False)
    for name in bundle.verify():
        tell(f"ok  {name}")
    tell(f"{bundle.root}: {len(bundle.manifest.files)} files match the manifest, sha256 {bundle.sha256}")
    return 0


def _receipts(target: Path, arguments: argparse.Namespace) -> int:
    options = given(arguments, RuntimeOptions)
    if options and not arguments.remake:
        raise RequestError("options of the execution are for making a video again; add --remake")
    receipts = read_receipts(target)
    for receipt in receipts:
        check_file(receipt)
        tell(f"ok  {receipt.facts['file']}  is the file that was made")
        if arguments.remake:
            tell(f"ok  {receipt.facts['file']}  {_made_again(receipt, arguments)}")
    matched = "1 video matches its receipt" if len(receipts) == 1 else f"{len(receipts)} videos match their receipts"
    tell(f"{target}: {matched}")
    return 0


def _made_again(receipt: Receipt, arguments: argparse.Namespace) -> str:
    """What comes of making a video again.

    Raises:
        ReceiptError: it is another video.
    """
    plan = receipt.plan
    bundle = Bundle.open(arguments.bundle or plan.bundle)
    options = options_of(receipt, given(arguments, RuntimeOptions))
    with tempfile.TemporaryDirectory() as folder, Pipeline(bundle, options) as pipeline:
        path = Path(folder) / receipt.file.name
        with Progress(sys.stderr) as progress:
            file = remake(receipt, pipeline, path, progress)
        if file.content_sha256 == receipt.facts["content_sha256"]:
            return "is made again bit for bit"
        found = difference_db(path, receipt.file)
        here = pipeline.settled
    made = RuntimeOptions.from_dict(receipt.facts["runtime"])
    apart = "has the same pixels in another file" if math.isinf(found) else f"differs by {found:.1f} dB (PSNR)"
    told = f"{apart} when {' and '.join(_names(here))} makes it again in {here.precision}"
    bound = LEAST_PSNR_DB.get(here.precision or "") if here.precision == made.precision else None
    if bound is None:
        return f"{told}; between {made.precision} and {here.precision} no bound is known"
    if found < bound:
        raise ReceiptError(f"{receipt.file} {told}; in {here.precision} it must be at least {bound:g} dB")
    return f"{told}; in {here.precision} it must be at least {bound:g} dB"


def _names(options: RuntimeOptions) -> tuple[str, ...]:
    return options.backend if isinstance(options.backend, tuple) else (str(options.backend),)


KINDS = (  # the first that fits
    Kind("a receipt of a batch", is_receipt, _receipts),
    Kind("a video or picture", is_video_or_picture, verify_file),
    Kind("the folder of a bundle", Path.is_dir, _bundle),
)
