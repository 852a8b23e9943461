"""The process that is measured: loads one implementation and runs it when it is told. Started by `session`."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

from .implementation import Implementation, work_of
from .implementations import load_implementation
from .measuring import Run, serve


def load(spec: dict[str, Any]) -> Run:
    """Loads the model of `spec`; what it returns runs it, or does nothing where only loading is measured."""
    run = _implementation(spec).load(work_of(spec["work"]), spec["precision"])
    return dict if spec.get("load_only") else run  # a run that does nothing


def prepare(spec: dict[str, Any]) -> None:
    """Imports the libraries and makes what must be there before loading."""
    implementation = _implementation(spec)
    exec(implementation.import_statement, {})
    implementation.prepare(work_of(spec["work"]))


def _implementation(spec: dict[str, Any]) -> Implementation:
    return load_implementation(spec["implementation"], spec["path"])


if __name__ == "__main__":
    given = json.loads(sys.argv[sys.argv.index("--worker") + 1])
    serve(partial(load, given), partial(prepare, given))
