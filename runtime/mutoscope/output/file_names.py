"""Names that Windows keeps for devices, or takes for another name. Knows names, and no files.

Source: "Naming Files, Paths, and Namespaces" of Microsoft's documentation; as `os.path.isreserved` of Python 3.13.
"""

from __future__ import annotations

import sys
from pathlib import PureWindowsPath

from ..errors import OutputError

DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
DEVICES |= {f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789\xb9\xb2\xb3"}
NOT_IN_NAMES = '<>:"|?*'


def refuse_reserved(path: str) -> None:
    """Refuses a path that Windows would not make as it is written; does nothing on other systems.

    Raises:
        OutputError: says which part of the path it is, and why.
    """
    if sys.platform == "win32" and (reason := reserved_because(path)):
        raise OutputError(f"{path!r} cannot be written on Windows: {reason}. Choose another name")


def reserved_because(path: str) -> str | None:
    """What Windows has against the first part of a path that it would not make as it is written, if any."""
    pure = PureWindowsPath(path)
    if pure.drive and not pure.root:
        return f"{pure.drive} without a \\ after it is not the top of a drive, but its current folder"
    for part in pure.parts[1:] if pure.anchor else pure.parts:
        device = part.partition(".")[0].rstrip(" ").upper()
        if device in DEVICES:
            return f"{part!r} is a device, whatever its ending"
        if found := next((sign for sign in part if sign in NOT_IN_NAMES or sign < " "), None):
            return f"{part!r} has a {found!r}, which no file name may contain"
        if part[-1] in ". " and part != "..":
            return f"{part!r} ends with a dot or a space, which would be left out"
    return None
