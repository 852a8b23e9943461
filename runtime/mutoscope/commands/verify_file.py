"""What `mutoscope verify` tells of a video or picture: each layer that says that it is AI-generated."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import OutputError, ProvenanceError
from ..provenance.report import examine, is_pictures
from ..provenance.signature import INVALID
from ..terminal import format_facts, tell
from .arguments import Parser


def add_of_files(parser: Parser) -> None:
    """The flags that are for a video or picture alone."""
    parser.add_argument("--json", action="store_true", help="print what was found in a video or picture as JSON")
    parser.add_argument(
        "--trust", metavar="FILE", type=Path, help="certificates (PEM) that are trusted to say who signed a video"
    )


def is_video_or_picture(path: Path) -> bool:
    """Whether a path is that of a file, or of a folder of PNGs."""
    return path.is_file() or is_pictures(path)


def verify_file(target: Path, arguments: argparse.Namespace) -> int:
    """Prints a line for each layer, and one that sums up; or all of it as one JSON object.

    Raises:
        ProvenanceError: the file was changed after it was signed.
        OutputError: it cannot be read.
    """
    try:
        roots = [arguments.trust.read_text("ascii", "replace")] if arguments.trust else []
        report = examine(target, roots)
    except OSError as error:
        raise OutputError(f"{error.filename or target} cannot be read: {error.strerror}") from error
    tell(json.dumps({"path": str(target)} | report.to_dict()) if arguments.json else format_facts(report.describe()))
    if report.signature.state == INVALID:
        raise ProvenanceError(f"{target} is not as it was signed: {report.signature.detail}")
    if arguments.json:
        return 0
    found = " and ".join(report.layers)
    tell(f"{target}: AI-generated, by its {found}" if found else f"{target}: nothing was found, which proves nothing")
    return 0
