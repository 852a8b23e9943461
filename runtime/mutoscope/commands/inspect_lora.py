"""`mutoscope inspect FILE.safetensors`: what a LoRA changes, and which bundle it fits. Reads no more than headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mutoscope_engines.errors import GraphError
from mutoscope_engines.lora_file import summary_of
from mutoscope_engines.safetensors_file import SafetensorsFile
from mutoscope_engines.system.file_hash import file_sha256

from ..bundle.bundle import Bundle
from ..errors import RequestError
from ..planning.loras import settle_loras
from ..request import LORAS, VideoRequest
from ..values.byte_sizes import format_bytes
from ..values.loras import Lora

_LONGEST_NOTE = 200


def facts_of_lora(path: Path, bundle: Bundle | None) -> dict[str, Any]:
    """What a file holds, by name; where a bundle is given, also whether it fits each of its denoisers.

    Raises:
        RequestError: it cannot be read, or is no safetensors file.
    """
    try:
        file = SafetensorsFile(path)
    except (GraphError, OSError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    found = summary_of(file)
    facts: dict[str, Any] = {
        "file": str(path),
        "sha256": file_sha256(path),
        "size": format_bytes(path.stat().st_size),
        "changes": f"{found.layers} layers by low rank, {found.differences} parameters by a difference",
        "ranks": ", ".join(map(str, found.ranks)) or "none",
        "blocks": found.blocks,
        "types": ", ".join(found.types),
    }
    if found.others:
        facts["of other methods"] = f"{found.others} tensors"
    facts |= {f"note {name}": text[:_LONGEST_NOTE] for name, text in file.metadata.items()}
    if bundle is not None:
        facts |= {"bundle": str(bundle.root), "fits": _fits(path, bundle)}
    return facts


def _fits(path: Path, bundle: Bundle) -> dict[str, str] | str:
    """By denoiser and precision: yes, or why not."""
    manifest = bundle.manifest
    found = {}
    for name, expert in zip(LORAS, manifest.experts, strict=False):
        request = VideoRequest(prompt="", **{name: (Lora(path),)})  # type: ignore[arg-type]
        for precision in manifest.precisions(expert.role):
            if manifest.lora_form(expert.role, precision) is None:
                continue
            try:
                settle_loras(request, manifest, precision)
                found[f"{expert.role} {precision}"] = "yes"
            except RequestError as error:
                found[f"{expert.role} {precision}"] = f"no: {error}"
    return found or "not known: this bundle was exported without --lora-inputs"
