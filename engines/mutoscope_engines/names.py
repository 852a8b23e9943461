"""What to say of a name that does not exist. Knows text. Knows nothing of what is named."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def no_such(what: str, name: str, known: Sequence[str], *, of: str = "") -> str:
    """Says that a name is unknown, which is the nearest, and which there are.

    The nearest is the only one that begins with it, and else the one that is spelled most like it.

    Args:
        of: what has the known names, with its preposition, such as "in the bundle".
    """
    begun = [each for each in known if name and each.startswith(name)]
    nearest = begun if len(begun) == 1 else difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {nearest[0]}?" if nearest else "."
    return f"there is no {what} {name!r}{of and f' {of}'}{meant} There are: {', '.join(known)}"
