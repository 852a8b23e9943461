"""From a checkpoint to a bundle: tokenizer, graphs, comparison, preview, and the manifest last.

Knows the order of the stages, and that a bundle appears whole or not at all. Knows nothing of any model line.
"""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch
from mutoscope.bundle.bundle import (
    FORMAT_VERSION,
    TOKENIZER,
    Bundle,
    Defaults,
    Demonstration,
    Geometry,
    Graph,
    GraphTensor,
    Manifest,
    Preview,
    Provenance,
    write_manifest,
)
from mutoscope.errors import RequestError
from mutoscope.solvers.schedule import ScheduleError, build_schedule, from_diffusers
from mutoscope.version import __version__
from mutoscope_engines.backends import choose_backend

from .checkpoint.checkpoint import OVERRIDES, UNKNOWN, Checkpoint, open_checkpoint
from .checkpoint.tokenizer import write_tokenizer
from .destination import new_bundle
from .errors import ExportError
from .families import Form, GraphSource
from .graphs.parts import DEFAULT_PART_BYTES, Blocks
from .graphs.trace import NETWORK, SymbolicValue, dynamic_shapes, trace, write_graph
from .graphs.weight_files import WeightFolder
from .parity import Sample, compare, compare_with_own_class, record
from .passes.half_weights import half_weights
from .passes.network_type import TRACED
from .preview import fit_preview
from .quantization.calibration import CalibrationOptions
from .quantization.quantize import narrow
from .sizes import allowed_sizes

REPORT = "export_report.json"

OnProgress = Callable[[str], None]


class Overrides(msgspec.Struct, forbid_unknown_fields=True):
    """`mutoscope.json` in the top folder of a checkpoint: what its authors want a bundle to say. All of it is optional.

    `defaults` replaces some of the family's `Defaults`, for a model made for another size or
    length;
    `demonstration` says what a small model understands.
    """

    defaults: dict[str, Any] = {}
    demonstration: Demonstration | None = None
    attribution: str | None = None


def export_checkpoint(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    overwrite: bool = False,
    compact: bool = False,
    part_bytes: int = DEFAULT_PART_BYTES,
    calibration: CalibrationOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Bundle:
    """Writes the bundle of a checkpoint.

    One component is in memory at a time. Everything is written into a hidden folder, beside `destination` or in it
    where it exists, and appears under its name at the end, after every graph was compared with its network.

    Args:
        checkpoint: a folder in the Diffusers layout, or a hub id.
        destination: the bundle's folder; must not exist, or be empty, or with `overwrite` be a bundle.
        precisions: of the denoiser; the first one that a backend supports is what it runs by default.
        compact: store weights that are exact in half precision so: half the size, and the same frames.
        part_bytes: the most that one graph of the denoiser or the text encoder for GPUs may weigh; a larger one is
            written in parts of whole blocks, of which each becomes an engine. Host memory while building grows with
            it, and parts pass on hidden states, which take device memory.
        calibration: what the ranges of fp8 and int8-static are taken from; at the checkpoint's defaults where nothing
            else is said.
        on_progress: told the stage that begins.

    Raises:
        BackendUnavailableError: ONNX Runtime, through which graphs are compared, is not there or damaged.
        ExportError: the checkpoint is refused, a graph differs from its network, or the disk is full.
        RequestError: a precision or destination that cannot be served.
    """
    say = on_progress or (lambda stage: None)
    choose_backend("onnxruntime", ["fp32"])  # every graph is compared through it
    with new_bundle(Path(destination), overwrite=overwrite) as folder:
        say("open checkpoint")
        opened = open_checkpoint(checkpoint)
        sources = _sources(opened, precisions, compact, part_bytes)
        manifest = _describe(opened, folder, say)
        judged: Mapping[str, Any] = {}
        if narrowed := [precision for precision in precisions if precision in opened.family.NARROWED]:
            narrowing = narrow(opened, manifest, narrowed, calibration or CalibrationOptions(), say)
            sources, judged = [narrowing.applied(source) for source in sources], narrowing.reports
        graphs, compared = _export_graphs(opened, sources, folder, say)
        say("preview")
        preview = _fit_preview(opened, manifest.geometry.latent_channels)
        report = {"made_with": _made_with(), "narrowed": judged, **compared}
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8", newline="\n")
        say("publish")
        write_manifest(folder, msgspec.structs.replace(manifest, graphs=tuple(graphs), preview=preview))
    return Bundle.open(destination, verify=False)


def _sources(opened: Checkpoint, precisions: Sequence[str], compact: bool, part_bytes: int) -> list[GraphSource]:
    sources = opened.family.sources(_checked_precisions(precisions, opened.family.PRECISIONS))
    if compact:
        sources = [replace(source, forms=tuple(map(_compact, source.forms))) for source in sources]
    return [replace(source, forms=tuple(_in_parts(form, part_bytes) for form in source.forms)) for source in sources]


def _describe(opened: Checkpoint, folder: Path, say: OnProgress) -> Manifest:
    """The manifest without its graphs; writes the tokenizer, and refuses what is wrong before any network is loaded."""
    family = opened.family
    overrides = _overrides(opened)
    scheduler = opened.scheduler
    given = (
        msgspec.to_builtins(family.DEFAULTS[opened.pipeline])
        | {"scheduler": from_diffusers(scheduler)}
        | overrides.defaults
    )
    try:
        defaults = msgspec.convert(given, Defaults)
    except msgspec.ValidationError as error:
        raise ExportError(f"defaults in {OVERRIDES} of {opened.name} are wrong: {error}") from error
    geometry = family.geometry(opened)
    _refuse_impossible_defaults(opened.name, defaults, geometry, scheduler)
    say("tokenizer")
    tokenizer = opened.tokenizer()
    text = family.text_settings(opened, tokenizer)
    write_tokenizer(tokenizer, folder / TOKENIZER)
    return Manifest(
        format_version=FORMAT_VERSION,
        family=family.NAME,
        provenance=Provenance(
            checkpoint=opened.name,
            license=opened.license(),
            attribution=overrides.attribution or UNKNOWN,
            exported_by=_made_with(),
            files=opened.sha256_of_files(lambda name: say(f"hash {name}")),
        ),
        geometry=geometry,
        text=text,
        defaults=defaults,
        scheduler=scheduler,
        graphs=(),
        files={},
        demonstration=overrides.demonstration,
    )


def _refuse_impossible_defaults(name: str, defaults: Defaults, geometry: Geometry, scheduler: dict[str, Any]) -> None:
    """A request that says nothing but its prompt must be possible."""
    for option, allowed in allowed_sizes(geometry).items():
        given = getattr(defaults, option)
        if given not in allowed:
            raise ExportError(
                f"the default {option} of {name} is {given}; its networks take {allowed[0]} to {allowed[-1]} in steps "
                f"of {allowed.step}. Set another one under defaults in {OVERRIDES} in the checkpoint's folder"
            )
    try:
        build_schedule(defaults.scheduler, scheduler, defaults.num_inference_steps, defaults.sigmas)
    except ScheduleError as error:
        raise ExportError(f"the defaults of {name} give no schedule: {error}") from error


def _overrides(opened: Checkpoint) -> Overrides:
    try:
        return msgspec.convert(opened.overrides, Overrides)
    except msgspec.ValidationError as error:
        raise ExportError(f"{OVERRIDES} of {opened.name} is wrong: {error}") from error


def _export_graphs(
    opened: Checkpoint, sources: Sequence[GraphSource], folder: Path, say: OnProgress
) -> tuple[list[Graph], dict[str, list[dict[str, Any]]]]:
    """Component by component: load, export its graphs, free it, compare the graphs with what it gave."""
    graphs: list[Graph] = []
    report: dict[str, list[dict[str, Any]]] = {"components": [], "graphs": []}
    for component, its_sources in groupby(sources, lambda source: source.component):
        made, beside_own_class = _export_component(opened, component, list(its_sources), folder, say)
        stored_type = opened.stored_type(component)
        report["components"].append(beside_own_class)
        gc.collect()  # the exporter leaves cycles that hold the weights
        for parts, samples in made:
            say(f"compare {parts[0].role} {parts[0].precision}")
            report["graphs"].append(compare({folder / graph.file: graph for graph in parts}, samples, stored_type))
            graphs += parts
    return graphs, report


def _export_component(
    opened: Checkpoint, component: str, sources: Sequence[GraphSource], folder: Path, say: OnProgress
) -> tuple[list[tuple[list[Graph], list[Sample]]], dict[str, Any]]:
    """Every graph of a component, in parts, with what its network made of some inputs."""
    say(f"load {component}")
    model = opened.load(component)
    with torch.no_grad():
        beside_own_class = compare_with_own_class(component, model, *opened.family.beside_own_class(component, model))
    made = []
    for source in sources:
        say(f"trace {source.role}")
        output_names = [name for name, _, _ in source.outputs(model)]
        samples = record(source.module(model, torch.float32), source.examples(model), output_names)
        traced = trace_source(source, model)
        destination = WeightFolder(folder / source.role)
        for form in source.forms:
            say(f"write {source.role} {form.precision}")
            made.append((write_form(source, form, model, traced, destination), samples))
    return made, beside_own_class


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
    written = write_graph(
        traced, destination, name=form.file, network_type=form.network_type, passes=form.passes, cut=form.cut
    )
    inputs, outputs = source.inputs(model), source.outputs(model)
    declared = {tensor.name: tensor for tensor in _declared((*inputs, *outputs), form)}

    def tensors(values: Sequence[SymbolicValue]) -> tuple[GraphTensor, ...]:
        return tuple(declared.get(value[0]) or _declared([value], form)[0] for value in values)

    return [
        Graph(
            role=source.role,
            precision=form.precision,
            file=f"{source.role}/{graph.file}",
            weights=tuple(f"{source.role}/{file}" for file in graph.weights.files),
            weight_bytes=graph.weights.num_bytes,
            inputs=tensors(graph.inputs) if len(written) > 1 else _declared(inputs, form),
            outputs=tensors(graph.outputs) if len(written) > 1 else _declared(outputs, form),
            part=number if len(written) > 1 else 0,
        )
        for number, graph in enumerate(written, start=1)
    ]


def _declared(values: Sequence[SymbolicValue], form: Form) -> tuple[GraphTensor, ...]:
    return tuple(
        GraphTensor(name=name, dtype=form.network_type if dtype == NETWORK else dtype, shape=shape)
        for name, dtype, shape in values
    )


def _compact(form: Form) -> Form:
    return replace(form, passes=(*form.passes, half_weights))


def _in_parts(form: Form, part_bytes: int) -> Form:
    return replace(form, cut=replace(form.cut, most_bytes=part_bytes)) if isinstance(form.cut, Blocks) else form


def _fit_preview(opened: Checkpoint, latent_channels: int) -> Preview:
    component = opened.load(opened.family.PREVIEWED)
    return fit_preview(lambda latents: opened.family.decode(component, latents), latent_channels)


def _made_with() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "onnxscript"))
    return f"mutoscope {__version__} with {libraries}"


def _checked_precisions(given: Sequence[str], known: Sequence[str]) -> list[str]:
    unknown = [precision for precision in given if precision not in known]
    if unknown or not given or isinstance(given, str):
        raise RequestError(f"precisions must be some of: {', '.join(known)}; got {given!r}")
    return list(dict.fromkeys(given))
