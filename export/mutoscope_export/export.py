"""From a checkpoint to a bundle: tokenizer, graphs, comparison, preview, and the manifest last.

Knows the order of the stages, and that a bundle appears whole or not at all. Knows nothing of any model line.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import msgspec
import onnx_ir as ir
import torch
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.contract import DECODE, stage_of
from mutoscope.bundle.manifest import Graph, GraphTensor, Manifest, Parameter, Preview
from mutoscope.errors import RequestError
from mutoscope.values import checks
from mutoscope_engines.backends import choose_backend
from mutoscope_engines.names import no_such

from .checkpoint.replacements import Replacements, replacements
from .checkpoint.tokenizer import write_tokenizer
from .declaration import declared_graph, declared_manifest
from .destination import new_bundle
from .families.decoding import decode
from .families.family import Form, GraphSource
from .graphs.network_type import TRACED
from .graphs.parts import Blocks
from .graphs.trace import NETWORK, Pass, SymbolicValue, WrittenGraph, dynamic_shapes, trace, write_graph
from .graphs.weight_files import WeightFolder
from .lora_forms import changed_by_lora, lora_forms, parameters_of, takes_loras, with_lora_forms
from .opening import OpenedCheckpoint, open_checkpoint, with_staged_weights
from .options import ExportOptions
from .parity import Sample, compare, compare_with_own_class, record
from .passes.half_weights import half_weights
from .preview import fit_preview
from .quantization.quantize import quantize

REPORT = "export_report.json"
_STAGED = "staged"  # while it is written; weights that no library reads as they were given

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class _Written:
    """A graph part by part, and what its network makes of some inputs."""

    parts: list[Graph]
    samples: list[Sample]
    parameters: Mapping[str, Parameter]  # of the network, where LoRAs change the graph


def export_checkpoint(
    checkpoint: str | Path,
    destination: str | Path,
    options: ExportOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Bundle:
    """Writes the bundle of a checkpoint.

    One component is in memory at a time. Everything is written into a hidden folder, beside `destination` or in it
    where it exists, and appears under its name at the end, after every graph was compared with its network.

    Args:
        checkpoint: a folder in the Diffusers layout, or a hub id.
        destination: the bundle's folder; must not exist, or be empty, or with `options.overwrite` be a bundle.
        options: which graphs the bundle has, and how they are stored, divided and calibrated; the defaults of
            `ExportOptions` when omitted. Of `options.precision` the first that a backend supports is what it runs by
            default.
        on_progress: told the stage that begins.

    Raises:
        BackendUnavailableError: ONNX Runtime, through which graphs are compared, is not there or damaged.
        ExportError: the checkpoint is refused, a graph differs from its network, or the disk is full.
        RequestError: an option or destination that cannot be served.
    """
    say, options = on_progress or (lambda stage: None), options or ExportOptions()
    choose_backend("onnxruntime", ["fp32"])  # every graph is compared through it
    with new_bundle(Path(destination), overwrite=options.overwrite) as folder:
        say("open checkpoint")
        opened = open_checkpoint(checkpoint, _replacements(options))
        sources = _sources(opened, options)
        manifest = declared_manifest(opened, say)
        for text in manifest.texts:
            say(text.tokenizer)
            write_tokenizer(opened.tokenizer(PurePath(text.tokenizer).stem), folder / text.tokenizer)
        staged = folder / _STAGED
        opened = with_staged_weights(opened, staged, say)
        calibrated: Mapping[str, Any] = {}
        if static := [precision for precision in options.precision if precision in opened.description.policies]:
            quantization = quantize(opened, manifest, static, options, say)
            sources, calibrated = [quantization.applied(source) for source in sources], quantization.reports
        written, compared = _export_graphs(opened, sources, folder, say)
        say("preview")
        preview = _fit_preview(opened, sources, manifest)
        report = {"made_with": manifest.provenance.exported_by, "calibrated": calibrated, **compared}
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8", newline="\n")
        gc.collect()  # Windows removes no file that is still mapped
        shutil.rmtree(staged, ignore_errors=not staged.exists())
        say("publish")
        graphs = tuple(graph for each in written if not each.parameters for graph in each.parts)
        forms = lora_forms((each.parts, each.parameters) for each in written if each.parameters)
        write_manifest(folder, msgspec.structs.replace(manifest, graphs=graphs, lora_forms=forms, preview=preview))
    return Bundle.open(destination, verify=False)


def _replacements(options: ExportOptions) -> Replacements:
    others = {"vae": options.vae, "text_encoder": options.text_encoder}
    given = replacements(options.transformer, others, (options.lora, options.lora_2))
    return replace(given, video_input=checks.switch("video_input", options.video_input))


def _sources(opened: OpenedCheckpoint, options: ExportOptions) -> list[GraphSource]:
    sources = opened.family.sources(opened, _checked_precisions(options.precision, opened.description.precisions))
    if options.lora_inputs:
        sources = list(map(with_lora_forms, sources))
    if options.compact:
        sources = [replace(source, forms=tuple(map(_compact, source.forms))) for source in sources]
    most = checks.byte_count("part_size", options.part_size)
    return [replace(source, forms=tuple(_in_parts(form, most) for form in source.forms)) for source in sources]


def _export_graphs(
    opened: OpenedCheckpoint, sources: Sequence[GraphSource], folder: Path, say: OnProgress
) -> tuple[list[_Written], dict[str, list[dict[str, Any]]]]:
    """Component by component: load, export its graphs, free it, compare the graphs with what it gave."""
    graphs: list[_Written] = []
    report: dict[str, list[dict[str, Any]]] = {"components": [], "graphs": []}
    for component, its_sources in groupby(sources, lambda source: source.component):
        written, compared = _export_component(opened, component, list(its_sources), folder, say)
        stored_type = opened.stored_type(component)
        report["components"] += compared
        gc.collect()  # the exporter leaves cycles that hold the weights
        for each in written:
            say(f"compare {each.parts[0].role} {each.parts[0].precision}")
            files = {folder / graph.file: graph for graph in each.parts}
            report["graphs"].append(compare(files, each.samples, stored_type))
        graphs += written
    return graphs, report


def _export_component(
    opened: OpenedCheckpoint, component: str, sources: Sequence[GraphSource], folder: Path, say: OnProgress
) -> tuple[list[_Written], list[dict[str, Any]]]:
    """Writes every graph of a component; also gives the comparisons with its own class."""
    say(f"load {component}")
    model = opened.load(component)
    with torch.no_grad():
        compared = [compare_with_own_class(component, model, *source.own(model)) for source in sources if source.own]
    if not compared:
        raise NotImplementedError(f"no graph of the {component} is compared with the component's own class")
    written = []
    for source in sources:
        say(f"trace {source.role}")
        samples = _recorded(source, model)
        traced = trace_source(source, model)
        destination = WeightFolder(folder / source.role)
        for form in source.forms:
            say(f"write {source.role} {form.precision}")
            parts = write_form(source, form, model, traced, destination)
            if not form.lora_inputs:
                written.append(_Written(parts, samples, {}))
                continue
            with changed_by_lora(model, parts) as arrays:
                changed = [replace(sample, of_weights=arrays) for sample in _recorded(source, model)]
            written.append(_Written(parts, changed, parameters_of(model, opened.family.original_name)))
    return written, compared


def _recorded(source: GraphSource, model: Any) -> list[Sample]:
    output_names = [name for name, _, _ in source.outputs(model)]
    return record(source.module(model, torch.float32), source.examples(model), output_names)


def trace_source(source: GraphSource, model: Any) -> ir.Model:
    """The graph of a source, for a loaded component: to be written in each form."""
    inputs, example = source.inputs(model), source.examples(model)[0]
    with torch.no_grad():
        return trace(
            source.module(model, TRACED),
            {name: example[name].to(TRACED) if dtype == NETWORK else example[name] for name, dtype, _ in inputs},
            dynamic_shapes(inputs),
            [name for name, _, _ in source.outputs(model)],
        )


def write_form(source: GraphSource, form: Form, model: Any, traced: ir.Model, destination: WeightFolder) -> list[Graph]:
    """Writes what `trace_source` gave; what the manifest says of it, part by part.

    Inputs and outputs of the whole are as the family declares them; what passes from part to part is described by the
    files.
    """
    passes: list[Pass] = [*form.passes, *([takes_loras(form, model)] if form.lora_inputs else [])]
    written = write_graph(
        traced, destination, name=form.file, network_type=form.network_type, passes=passes, cut=form.cut
    )
    whole = declared_graph(source, form, model)
    declared = {tensor.name: tensor for tensor in (*whole.inputs, *whole.outputs)}

    def tensors(values: Sequence[SymbolicValue]) -> tuple[GraphTensor, ...]:
        return tuple(
            declared.get(name) or GraphTensor(name=name, dtype=dtype, shape=shape) for name, dtype, shape in values
        )

    def stored(graph: WrittenGraph, **interface: Any) -> Graph:
        return msgspec.structs.replace(
            whole,
            file=f"{source.role}/{graph.file}",
            weights=tuple(f"{source.role}/{file}" for file in graph.weights.files),
            weight_bytes=graph.weights.num_bytes,
            **interface,
        )

    if len(written) == 1:
        return [stored(written[0], inputs=tensors(written[0].inputs))]
    return [
        stored(graph, part=number, inputs=tensors(graph.inputs), outputs=tensors(graph.outputs))
        for number, graph in enumerate(written, start=1)
    ]


def _compact(form: Form) -> Form:
    return replace(form, passes=(*form.passes, half_weights))


def _in_parts(form: Form, part_bytes: int) -> Form:
    return replace(form, cut=replace(form.cut, most_bytes=part_bytes)) if isinstance(form.cut, Blocks) else form


def _fit_preview(opened: OpenedCheckpoint, sources: Sequence[GraphSource], manifest: Manifest) -> Preview:
    (component,) = {source.component for source in sources if stage_of(source.role) == DECODE}
    model = opened.load(component)
    return fit_preview(
        lambda chunks: decode(sources, model, chunks),
        manifest.geometry.latent_channels,
        manifest.frames.latents_per_call,
    )


def _checked_precisions(given: Sequence[str], known: Sequence[str]) -> list[str]:
    if not given or isinstance(given, str):
        raise RequestError(f"precision must be a tuple of one or more of: {', '.join(known)}; got {given!r}")
    if unknown := [precision for precision in given if precision not in known]:
        raise RequestError(no_such("precision", unknown[0], known))
    return list(dict.fromkeys(given))
