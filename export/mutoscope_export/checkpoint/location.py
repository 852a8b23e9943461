"""Where a checkpoint is: a folder, or a repository on the hub. Knows paths and the hub, and nothing of the content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ExportError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ENDINGS = (*PICKLES, ".safetensors", ".sft", ".gguf", ".onnx", ".json", ".zip", ".tar", ".gz")
_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.md", "LICENSE*"]


def locate(checkpoint: str | Path) -> tuple[Path, str, bool]:
    """The folder, what to call it, and whether its weights are still on the hub.

    What looks like a path is never asked for on the hub: a file, a name with the ending of a file of weights, and a
    name whose first folder exists here.

    Raises:
        ExportError: there is no such folder, and the hub has none either or was not asked.
    """
    root = Path(checkpoint)
    if root.is_dir():
        return root, root.resolve().name, False
    if root.exists() or root.suffix.lower() in _ENDINGS:
        what = "is a file" if root.exists() else "names a file that does not exist"
        raise ExportError(
            f"{checkpoint} {what}. Single-file checkpoints and GGUF cannot be read: name the top folder of a "
            "checkpoint in the Diffusers layout, the one with model_index.json"
        )
    if isinstance(checkpoint, Path) or not _HUB_ID.fullmatch(checkpoint):
        raise ExportError(
            f"there is no checkpoint at {checkpoint}: not a folder, and not a hub id such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    if root.parent.exists():
        raise ExportError(
            f"there is no folder {checkpoint}. It is taken for a path, because {root.parent} exists here; if it is a "
            "hub id, export from another folder"
        )
    root = download(checkpoint, _DESCRIPTION)
    return root, f"{checkpoint}@{root.name}", True


def download(hub_id: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The folder of a revision (the newest where none is given), with at least the files of these patterns.

    Raises:
        ExportError: it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download

    # Its client names PyTorch's version and what started the process in every request, unless it is told not to. Its
    # variable for that is read on import, which was long ago.
    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises errors of several libraries
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"{hub_id} is not a folder here and could not be downloaded from the hub: {cause}. "
            "Check the name and the network, or download it elsewhere and name the folder"
        ) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before
