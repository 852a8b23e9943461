"""`mutoscope inspect`: what a bundle says of itself. Reads the manifest alone; `verify` checks the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from ..builtin import bundle_path
from ..bundle import Bundle, GraphTensor
from .arguments import Parser, add_bundle
from .report import format_bytes, format_facts


def main(argv: Sequence[str]) -> int:
    parser = Parser("inspect", "Shows what a bundle holds; reads its manifest and opens no graph.")
    add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object: path, hash and manifest")
    arguments = parser.parse(argv)
    bundle = Bundle.open(arguments.bundle or bundle_path(), verify=False)
    if arguments.json:
        manifest = msgspec.to_builtins(bundle.manifest)
        print(json.dumps({"bundle": str(bundle.root), "sha256": bundle.sha256, "manifest": manifest}))
    else:
        print(format_facts(_facts(bundle)))
    return 0


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    files = manifest.files.values()
    facts = {
        "bundle": str(bundle.root),
        "sha256": bundle.sha256,
        "size": f"{format_bytes(sum(record.size for record in files))} in {len(files)} files",
        "family": manifest.family,
        "checkpoint": manifest.provenance.checkpoint,
        "license": manifest.provenance.license,
        "attribution": manifest.provenance.attribution,
        "exported by": manifest.provenance.exported_by,
    }
    if manifest.demonstration:
        facts["understands"] = manifest.demonstration.description
    return {
        **facts,
        "graphs": {
            f"{graph.role} {graph.precision}": {
                "size": format_bytes(bundle.size_of(graph)),
                "inputs": _tensors(graph.inputs),
                "outputs": _tensors(graph.outputs),
            }
            for graph in manifest.graphs
        },
        "defaults": msgspec.to_builtins(manifest.defaults),
        "limits": {**msgspec.to_builtins(manifest.geometry), "text tokens": manifest.text.max_sequence_length},
        "scheduler": manifest.scheduler,
    }


def _tensors(tensors: tuple[GraphTensor, ...]) -> str:
    """Names and shapes; of the many caches of a decoder, how many."""
    named = [tensor for tensor in tensors if not tensor.name.startswith("cache_")]
    texts = [f"{tensor.name} {tensor.dtype} [{', '.join(map(str, tensor.shape))}]" for tensor in named]
    caches = len(tensors) - len(named)
    return ", ".join([*texts, f"{caches} caches"] if caches else texts)
