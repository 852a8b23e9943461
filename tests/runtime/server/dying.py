"""`mutoscope serve` that is killed, as by `kill -9`, before or after the first call of a function.

python -m tests.runtime.server.dying before|after MODULE:NAME [ARGUMENT ...]
"""

from __future__ import annotations

import os
import signal
import sys
from functools import reduce
from importlib import import_module
from typing import Any

from mutoscope.cli import main


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str, where: str) -> None:
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, import_module(module))
    function = getattr(owner, name)

    def dying(*arguments: Any, **keywords: Any) -> Any:
        if when == "before":
            die()
        result = function(*arguments, **keywords)
        die()
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    arm(*sys.argv[1:3])
    sys.exit(main(["serve", *sys.argv[3:]]))
