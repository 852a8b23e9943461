"""The command of a Python process that a part of this project runs in, beside the one that starts it."""

from __future__ import annotations

import sys

from ..errors import BackendUnavailableError


def child_python(*arguments: str) -> list[str]:
    """The command that runs this process's Python interpreter with these arguments.

    Raises:
        BackendUnavailableError: this program is frozen: its executable is the program itself, which would start again.
    """
    if getattr(sys, "frozen", False):
        raise BackendUnavailableError(
            "this needs a Python interpreter, and a frozen program has none; run it from a Mutoscope that is installed "
            "in Python"
        )
    return [sys.executable, *arguments]
