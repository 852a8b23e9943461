"""What a bundle's manifest declares of a checkpoint and of its graphs, before a network is loaded or a graph written.

Knows descriptions, sources and forms. Knows nothing of weights, nor of the files of a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from mutoscope.bundle.checks import impossible_defaults
from mutoscope.bundle.manifest import FORMAT_VERSION, Graph, GraphTensor, Manifest, MergedLora, Provenance
from mutoscope.version import __version__
from mutoscope_engines.system.file_hash import file_sha256

from .checkpoint.checkpoint import OVERRIDES, UNKNOWN
from .errors import ExportError
from .families.family import Form, GraphSource
from .graphs.trace import NETWORK, SymbolicValue
from .opening import OpenedCheckpoint


def declared_manifest(opened: OpenedCheckpoint, say: Callable[[str], None] = lambda stage: None) -> Manifest:
    """The manifest of a checkpoint, still without graphs. Hashes the checkpoint's files.

    Args:
        say: told the file that is hashed next.

    Raises:
        ExportError: the networks cannot serve the checkpoint's own defaults, or a weight file is missing or damaged.
    """
    described, overrides = opened.description, opened.overrides
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        family=opened.family.NAME,
        provenance=Provenance(
            checkpoint=overrides.name or opened.name,
            license=opened.license(),
            attribution=overrides.attribution or UNKNOWN,
            exported_by=_versions(),
            files=opened.sha256_of_files(lambda name: say(f"hash {name}")),
            loras=tuple(_merged(opened)),
        ),
        geometry=described.geometry,
        frames=described.frames,
        conditionings=described.conditionings,
        experts=described.experts,
        draws=described.draws,
        defaults=described.defaults,
        scheduler=dict(described.scheduler),
        graphs=(),
        files={},
        demonstration=overrides.demonstration,
    )
    if wrong := "; ".join(impossible_defaults(manifest)):
        raise ExportError(f"{opened.name} is refused: {wrong}. Set others under defaults in {OVERRIDES} in its folder")
    return manifest


def declared_graph(source: GraphSource, form: Form, model: Any) -> Graph:
    """A source's graph in one form, as one file whose weights are not known yet.

    Args:
        model: the loaded component, which decides names and shapes of inputs and outputs.
    """
    return Graph(
        role=source.role,
        precision=form.precision,
        file=f"{source.role}/{form.file}",
        inputs=_tensors(source.inputs(model), form),
        outputs=_tensors(source.outputs(model), form),
    )


def _tensors(values: Sequence[SymbolicValue], form: Form) -> tuple[GraphTensor, ...]:
    return tuple(
        GraphTensor(name=name, dtype=form.network_type if dtype == NETWORK else dtype, shape=shape)
        for name, dtype, shape in values
    )


def _merged(opened: OpenedCheckpoint) -> Iterator[MergedLora]:
    for component, loras in opened.loras.items():
        for lora in loras:
            path = lora.file.file.path
            yield MergedLora(component=component, file=path.name, sha256=file_sha256(path), strength=lora.strength)


def _versions() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "onnxscript"))
    return f"mutoscope {__version__} with {libraries}"
