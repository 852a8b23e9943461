"""The process of one part: a spec in, one JSON object out. Whatever happens in it, the others still run."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from .part import Facts, NotRunError


def answer(function: str, spec: dict[str, Any]) -> Facts:
    """What the part found, with its `status`: "passed", "failed" or "not run"."""
    module, _, name = function.partition(":")
    try:
        facts: Facts = getattr(import_module(module), name)(spec)
    except NotRunError as error:
        return {"status": "not run", "reason": str(error)}
    except Exception as error:
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}",
            "traceback": [
                f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in traceback.extract_tb(error.__traceback__)
            ],
        }
    failed = [name for name, said in facts.get("checks", {}).items() if said != "passed"]
    return {"status": "failed", "reason": "; ".join(failed)} | facts if failed else {"status": "passed"} | facts


def main() -> None:
    """Answers on standard output, as JSON, for the part that the first argument names."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    given = json.loads(sys.argv[1])
    with answers:
        json.dump(answer(given["function"], given["spec"]), answers)


if __name__ == "__main__":
    main()
