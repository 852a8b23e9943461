"""What to say of a name that does not exist. Knows text. Knows nothing of what is named."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def no_such(what: str, name: str, known: Sequence[str], *, of: str = "") -> str:
    """Says that a name is unknown, which is the nearest, and which there are.

    Args:
        of: what has the known names, with its preposition, such as "in the bundle".
    """
    nearest = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {nearest[0]}?" if nearest else "."
    return f"there is no {what} {name!r}{of and f' {of}'}{meant} There are: {', '.join(known)}"
