"""The model that a case runs: the user's, the built-in one, or one made with random weights.

Knows bundles, checkpoints and the process that makes random weights. Knows nothing of measuring.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mutoscope.builtin import bundle_path
from mutoscope_engines.system.child_python import child_python
from mutoscope_engines.telemetry import OPT_OUT

from .cases import MODELS, Case, UnmeasurableError
from .options import Options

BUILTIN_CHECKPOINT = Path("export", "mutoscope_export", "demo", "checkpoint")  # in a checkout


@dataclass(frozen=True)
class Model:
    """A bundle and, where there is one, the checkpoint in the Diffusers layout that it was exported from."""

    bundle: Path
    checkpoint: Path | None


def model_of(case: Case, options: Options, folder: Path, say: Callable[[str], object]) -> Model:
    """Finds the model of a case, or makes it in `folder` where `options.models` names no other.

    Raises:
        UnmeasurableError: the case needs a model that was not given or cannot be made.
    """
    if case.model is None:
        if case.needs_bundle and options.bundle is None:
            raise UnmeasurableError(f"needs a real model: mutoscope bench BUNDLE --case {case.name}")
        own = builtin_checkpoint() if options.bundle is None else None
        return Model(options.bundle or bundle_path(), options.checkpoint or own)
    name = MODELS[case.model].quick if options.quick else case.model
    say(f"making a model with random weights ({name})")
    return _random_model(name, (options.models or folder) / name)


def builtin_checkpoint() -> Path | None:
    """What the built-in bundle was exported from: beside the sources, which an installation does not have."""
    folders = (parent / BUILTIN_CHECKPOINT for parent in bundle_path().parents)
    return next((folder for folder in folders if folder.is_dir()), None)


def _random_model(name: str, folder: Path) -> Model:
    command = child_python("-m", "mutoscope_peers.random_models", name, str(folder))
    made = subprocess.run(command, env=os.environ | OPT_OUT, capture_output=True, text=True)
    if made.returncode:
        last = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnmeasurableError(
            f"its model with random weights could not be made ({last}); that needs: pip install 'mutoscope[export]'"
        )
    return Model(folder / "bundle", folder / "checkpoint")
