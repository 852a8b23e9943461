"""`mutoscope inspect`: what a bundle says of itself, or what the file of a LoRA holds.

Of a bundle it reads the manifest alone; `verify` checks the rest.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
from mutoscope_engines.cache.shipped import index_sha256
from mutoscope_engines.safetensors_file import SUFFIXES

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..bundle.manifest import Expert, Graph, GraphTensor
from ..errors import RequestError
from ..terminal import format_facts, tell
from ..values.byte_sizes import format_bytes
from ..values.checks import multiples
from .arguments import Parser
from .inspect_lora import facts_of_lora


def main(argv: Sequence[str]) -> int:
    """`mutoscope inspect`. Returns the exit code."""
    parser = Parser(
        "inspect",
        "Shows the contents of a bundle, of which it reads only the manifest, or of the file of a LoRA.",
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE|FILE",
        nargs="?",
        type=Path,
        help="folder of a bundle (default: the built-in demonstration bundle), or a LoRA's safetensors file",
    )
    parser.add_argument("of", metavar="BUNDLE", nargs="?", type=Path, help="with a FILE: the bundle that it may fit")
    parser.add_argument("--json", action="store_true", help="print the same as one JSON object, of a bundle all of it")
    arguments = parser.parse(argv)
    path, of = arguments.bundle, arguments.of
    if path is not None and path.suffix in SUFFIXES and not path.is_dir():
        lora = facts_of_lora(path, None if of is None else Bundle.open(of, verify=False))
        tell(json.dumps(lora) if arguments.json else format_facts(lora))
        return 0
    if of is not None:
        raise RequestError(f"{path} must be a safetensors file where a bundle follows; got {of} after it")
    bundle = Bundle.open(arguments.bundle or bundle_path(), verify=False)
    if arguments.json:
        manifest = msgspec.to_builtins(bundle.manifest)
        tell(json.dumps({"bundle": str(bundle.root), "sha256": bundle.sha256, "manifest": manifest}))
    else:
        tell(format_facts(_facts(bundle)))
    return 0


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    files = manifest.files.values()
    facts: dict[str, Any] = {
        "bundle": str(bundle.root),
        "sha256": bundle.sha256,
        "size": f"{format_bytes(sum(record.size for record in files))} in {len(files)} files",
        "family": manifest.family,
        "checkpoint": manifest.provenance.checkpoint,
        "license": manifest.provenance.license,
        "attribution": manifest.provenance.attribution,
        "exported by": manifest.provenance.exported_by,
        "follows": ", ".join(manifest.followed),
    }
    if loras := manifest.provenance.loras:
        facts["merged LoRAs"] = {
            f"{number} in {lora.component}": f"{lora.file}, strength {lora.strength:g}, sha256 {lora.sha256}"
            for number, lora in enumerate(loras, start=1)
        }
    if shipped := index_sha256(bundle.engines_folder):
        facts["engines"] = f"engines_sha256 {shipped}, if you trust it"
    if manifest.lora_forms:
        facts["takes LoRAs"] = "; ".join(
            f"{form.role} in {', '.join(dict.fromkeys(graph.precision for graph in form.graphs))}"
            for form in manifest.lora_forms
        )
    if manifest.demonstration:
        facts["understands"] = manifest.demonstration.description
    if len(manifest.experts) > 1:
        facts["experts"] = {expert.role: _described(expert) for expert in manifest.experts}
    return {
        **facts,
        "graphs": {
            f"{graph.name} {graph.precision}": {
                "size": format_bytes(bundle.size_of(graph)),
                "inputs": _tensors(graph.inputs, passed),
                "outputs": _tensors(graph.outputs, passed),
            }
            for graph in manifest.graphs
            for passed in [_passed_on(manifest.graphs_of(graph.role, graph.precision))]
        },
        "defaults": msgspec.to_builtins(manifest.defaults),
        "limits": _limits(bundle),
        "scheduler": manifest.scheduler,
    }


def _described(expert: Expert) -> str:
    own = "" if expert.guidance_scale is None else f", guidance_scale {expert.guidance_scale:g}"
    return f"from timestep {expert.above:g}{own}"


def _limits(bundle: Bundle) -> dict[str, str]:
    """What a request may ask for; the plan holds it to that."""
    manifest = bundle.manifest
    limits = {name: f"{multiples(allowed)}, at most {allowed[-1]}" for name, allowed in manifest.sizes.items()}
    for text in manifest.texts:
        encoder = f" for the {text.role}" if len(manifest.texts) > 1 else ""
        limits[f"tokens of the {text.name}{encoder}"] = f"at most {text.max_sequence_length}"
    return limits


def _passed_on(parts: Sequence[Graph]) -> set[str]:
    """The names of what a part of a graph gives to later ones."""
    return {
        tensor.name for earlier, later in combinations(parts, 2) for tensor in earlier.outputs if tensor in later.inputs
    }


def _tensors(tensors: tuple[GraphTensor, ...], passed: Collection[str]) -> str:
    """Names and shapes; of the many caches of a decoder, and of what passes between parts, how many."""
    caches = {tensor.name for tensor in tensors if tensor.name.removeprefix("next_").startswith("cache_")}
    texts = [
        f"{tensor.name} {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
        for tensor in tensors
        if tensor.name not in caches and tensor.name not in passed
    ]
    on = sum(tensor.name in passed for tensor in tensors)
    texts += [f"{count} {what}" for count, what in ((len(caches), "caches"), (on, "from part to part")) if count]
    return ", ".join(texts)
