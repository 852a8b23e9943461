"""`mutoscope work`: one more worker for a server on this machine, in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import RequestError
from ..output.encoders import silence
from ..request import RuntimeOptions
from ..server.data_folder import refuse_public
from ..server.further import work
from ..server.parent import watch_parent
from ..terminal import note
from .arguments import Parser, add_fields, given


def main(argv: Sequence[str]) -> int:
    """`mutoscope work`. Returns the exit code."""
    arguments = _parser().parse(argv)
    data: Path = arguments.data
    if not data.is_dir():
        raise RequestError(f"there is no folder {data}; name the data folder of a server")
    refuse_public(data)
    silence()
    ended = threading.Event()
    watch_parent(ended.set)
    with suppress(KeyboardInterrupt):
        work(data, given(arguments, RuntimeOptions), ended)
    note("ended")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "work",
        "Makes videos of the queue of `mutoscope serve`, beside the server and in a process of its own, on the same "
        "machine. Start several to make several videos at the same time. Ends on Ctrl-C, and when standard input is a "
        "pipe whose other end closes; the video that it was making goes back into the queue.",
        epilog="Models and options are those that the server was started with, unless a flag here says otherwise. "
        "Share out the machine with --threads and --memory-limit, here and for the server.",
    )
    parser.add_argument("data", metavar="DIR", type=Path, help="the data folder of the server (its --data)")
    add_fields(parser, RuntimeOptions)
    return parser
