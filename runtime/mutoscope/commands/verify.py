"""`mutoscope verify`: every file of a bundle against its manifest."""

from __future__ import annotations

from collections.abc import Sequence

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..terminal import tell
from .arguments import Parser, add_bundle


def main(argv: Sequence[str]) -> int:
    """Prints each file that is right, and stops with an error at the first that is not."""
    parser = Parser("verify", "Checks the size and hash of every file in a bundle. Exits with code 3 if a check fails.")
    add_bundle(parser)
    bundle = Bundle.open(parser.parse(argv).bundle or bundle_path(), verify=False)
    for name in bundle.verify():
        tell(f"ok  {name}")
    tell(f"{bundle.root}: {len(bundle.manifest.files)} files match the manifest, sha256 {bundle.sha256}")
    return 0
