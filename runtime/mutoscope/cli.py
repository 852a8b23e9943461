"""The command line: which commands there are, and what every one does with an error.

Each command is a function `main(argv) -> exit code`, in a module that is imported when the command is used. So the
runtime never imports what only an export needs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from mutoscope_engines.names import no_such

from .errors import SMALLER_VIDEO, BackendUnavailableError, MutoscopeError, OutOfMemoryError, RequestError
from .output.standard_streams import usable_streams
from .terminal import note, tell
from .version import __version__

# Name to "module:function", what it is for, and the extra of the distribution that it needs, if any.
COMMANDS = {
    "generate": ("mutoscope.commands.generate:main", "make a video from a prompt", ""),
    "batch": ("mutoscope.commands.batch:main", "make the videos of a file of jobs; goes on where it was stopped", ""),
    "serve": ("mutoscope.commands.serve:main", "serve a page and an API on this machine", "server"),
    "work": ("mutoscope.commands.work:main", "make videos for a server, in one more process", ""),
    "inspect": ("mutoscope.commands.inspect:main", "show the contents of a bundle", ""),
    "verify": (
        "mutoscope.commands.verify:main",
        "check a bundle's files, a batch's videos, or whether a video says that it is AI-generated",
        "",
    ),
    "provenance": ("mutoscope.commands.provenance:main", "show or set the key that signs videos", "provenance"),
    "doctor": ("mutoscope.commands.doctor:main", "report what this machine and installation support", ""),
    "bench": ("mutoscope_bench.command:main", "measure speed on this machine, also against other software", ""),
    "build": ("mutoscope.commands.build:main", "compile a bundle into engines for GPUs; needs no GPU", ""),
    "gpu-check": ("mutoscope_bench.gpu_check.command:main", "test Mutoscope on this machine's GPU", ""),
    "export": ("mutoscope_export.cli:main", "convert a model checkpoint into a bundle", "export"),
}

# By name, as no system has all: `kill`, a lost terminal or connection, and Ctrl-Break on Windows.
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]

USAGE = "\n".join(
    [
        "usage: mutoscope COMMAND ...",
        "",
        "Makes videos from text prompts, without PyTorch, a network or a server.",
        "",
        *(f"  {name:<{max(map(len, COMMANDS))}}  {purpose}" for name, (_, purpose, _) in COMMANDS.items()),
        "",
        "A bundle is a folder with one exported model.",
        "mutoscope COMMAND --help explains a command. mutoscope --version prints the version.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, that of the error, or 130 when interrupted."""
    with usable_streams():
        try:
            with _ending_interrupts():
                return _run(list(sys.argv[1:] if argv is None else argv))
        except MutoscopeError as error:
            return _report(error)
        except MemoryError:
            return _report(OutOfMemoryError(f"out of memory; close other programs, or {SMALLER_VIDEO}"))
        except KeyboardInterrupt:
            note("interrupted")
            return 130
        except BrokenPipeError:  # whoever read standard output has gone, such as `head`
            return 1
        finally:
            _discard_unwritable_output()


@contextmanager
def _ending_interrupts() -> Iterator[None]:
    """What asks a process to end makes it tidy up as Ctrl-C does.

    Only the main thread may set that. A host gets its own handlers back. What is ignored, as under `nohup`, stays so.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # both the shell and the system send SIGHUP; tidying up goes on
    raise KeyboardInterrupt


def _discard_unwritable_output() -> None:
    """What the standard streams would not take is told once at most, and not again by Python when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        if argv:
            tell(USAGE)
            return 0
        print(USAGE, file=sys.stderr)
        return RequestError.exit_code
    name = argv[0]
    if name == "--version":
        tell(f"mutoscope {__version__}")
        return 0
    if name not in COMMANDS:
        raise RequestError(no_such("command", name, list(COMMANDS)))
    path, _, extra = COMMANDS[name]
    module, _, function = path.partition(":")
    try:
        code: int = getattr(import_module(module), function)(argv[1:])
    except ModuleNotFoundError as error:
        if not extra or (error.name or "mutoscope").startswith("mutoscope"):  # a fault of ours
            raise
        raise BackendUnavailableError(
            f"`mutoscope {name}` needs {error.name}, which is not installed; run: pip install 'mutoscope[{extra}]'"
        ) from error
    return code


def _report(error: MutoscopeError) -> int:
    from .commands.next_steps import on_the_command_line  # knows every parameter, which a command may not need

    note("error: " + " ".join(on_the_command_line(error).split("\n")))
    return error.exit_code
