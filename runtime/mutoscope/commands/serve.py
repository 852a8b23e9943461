"""`mutoscope serve`: a server with a page, on this machine unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import RequestError
from ..output.encoders import silence
from ..policy import load_policy
from ..request import OutputOptions, RuntimeOptions
from ..server.app import make_app
from ..server.data_folder import default_folder, owned
from ..server.listening import Server, listen, tls_context
from ..server.named_loras import checked_folder
from ..server.options import ServeOptions
from ..server.parent import watch_parent
from ..server.service import Service
from ..server.studio import VIDEOS, Studio
from ..terminal import note
from .arguments import Parser, add_fields, add_policy, given

BUILT_IN = "built-in"


def main(argv: Sequence[str]) -> int:
    """`mutoscope serve`. Returns the exit code."""
    parser = _parser()
    arguments = parser.parse(argv)
    options = ServeOptions(**given(arguments, ServeOptions))
    token, kling, tls = options.token(), options.kling(), tls_context(options)
    policy = None if arguments.policy is None else load_policy(arguments.policy)
    runtime, output = (
        RuntimeOptions(**given(arguments, RuntimeOptions)),
        OutputOptions(**given(arguments, OutputOptions)),
    )
    silence()
    data = Path(options.data or default_folder())
    with owned(data) as folder, listen(options) as found:
        studio = Studio(
            bundles=_bundles(arguments.bundles),
            options=runtime,
            output=output,
            folder=folder / VIDEOS,
            attempts=options.attempts,
            free_disk=options.free_disk,
            loras_folder=checked_folder(options.loras),
        )
        studio.folder.mkdir(mode=0o700, exist_ok=True)
        service = Service(studio, options, policy)
        try:
            service.table.set_settings(studio.settings())  # for workers in other processes
            service.start()
            app = make_app(service, token, None if options.uds else frozenset({options.host}), kling)
            server = Server(app, found, stopping=service.events.close, tls=tls)
            watch_parent(server.end)
            server.serve_until_the_end()
        finally:
            service.stop()
            if options.uds is not None:
                Path(options.uds).unlink(missing_ok=True)
    note("ended")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "serve",
        "Makes videos for other programs, and for people in a browser. Ends on Ctrl-C, and when standard input is a "
        "pipe whose other end closes.",
        epilog="Once it listens, it prints one JSON line with its address.",
    )
    parser.add_argument(
        "bundles",
        metavar="NAME=BUNDLE",
        nargs="*",
        help="models to offer: a name for each and the folder of its bundle; the first is the default "
        "(default: the built-in demonstration bundle)",
    )
    add_policy(parser)
    add_fields(parser, ServeOptions)
    add_fields(parser, RuntimeOptions)
    add_fields(parser, OutputOptions)
    return parser


def _bundles(named: Sequence[str]) -> dict[str, Bundle]:
    if not named:
        return {BUILT_IN: Bundle.open(bundle_path())}
    found: dict[str, Bundle] = {}
    for text in named:
        name, equals, folder = text.partition("=")
        if not equals:
            name, folder = Path(text).resolve().name, text
        if not name or "/" in name or name in found:
            raise RequestError(f"{text!r} has no name of its own; write NAME=BUNDLE, with another name for each")
        found[name] = Bundle.open(Path(folder))
    return found
