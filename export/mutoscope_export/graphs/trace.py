"""Writes a torch module as an ONNX file with its weights beside it.

Knows the torch exporter, the versions of the format and how to keep memory small. Knows nothing of models: what is in
the graph is the module's business, what is changed in it the passes'.

The exporter sees only shapes. Weights stay where the module has them until they are written, and are converted there,
one at a time: a bfloat16 checkpoint becomes a float32 graph without ever being float32 in memory, or a bfloat16 graph
without any conversion. A module is traced once for all types of its network (`graphs.network_type`).
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass
from onnxscript.optimizer import optimize_ir
from torch import Tensor

from ..errors import ExportError
from .fold_weights import fold_weights
from .network_type import NetworkType
from .parts import Cut, take_apart
from .weight_files import StoredWeights, WeightFolder

OPSET = 23
IR_VERSION = 10
GRAPH_FILE = "model.onnx"

Pass = Callable[[ir.Model], bool]
T = TypeVar("T")

NETWORK = "network"
SymbolicValue = tuple[str, str, tuple[int | str, ...]]
"""Name, dtype and shape of an input or output; a string in the shape is a symbol, or a product ("2*h", "F*h//2").

The dtype `NETWORK` is that of the network, which each form of a graph chooses.
"""


@dataclass(frozen=True)
class WrittenGraph:
    """A graph, or a part of one, in a file. Its inputs and outputs are as the file has them."""

    file: str
    weights: StoredWeights
    inputs: tuple[SymbolicValue, ...]
    outputs: tuple[SymbolicValue, ...]


_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def named(function: Callable[..., T], names: Sequence[str]) -> Callable[..., T]:
    """`function` with one parameter for each of `names`: the exporter names inputs by the signature."""
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])

    def called(*args: Tensor, **kwargs: Tensor) -> T:
        return function(*signature.bind(*args, **kwargs).args)

    called.__signature__ = signature  # type: ignore[attr-defined]
    return called


def export_graph(
    module: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic_shapes: Mapping[str, Mapping[int, str]],
    output_names: Sequence[str],
    destination: Path,
    *,
    passes: Sequence[Pass] = (),
) -> None:
    """Writes `module` as `destination/model.onnx` and `model.onnx.data`; the parameters are those of its two halves."""
    write_graph(trace(module, inputs, dynamic_shapes, output_names), WeightFolder(destination), passes=passes)


def trace(
    module: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic_shapes: Mapping[str, Mapping[int, str]],
    output_names: Sequence[str],
) -> ir.Model:
    """The graph of `module`, as the exporter makes it, with the module's own tensors as weights.

    `inputs` are example values by name, in the order of the module's parameters; their names become the graph's.
    `dynamic_shapes` gives each free dimension its name: `{"latents": {1: "F"}}`; such a dimension must be at least 2 in
    the example.
    """
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(output_names),
            dynamic_shapes={name: dict(dynamic_shapes.get(name, {})) for name in inputs},
            optimize=False,
            verbose=False,
        )
        assert program is not None
        InlinePass()(program.model)
    return program.model


def write_graph(
    traced: ir.Model,
    destination: WeightFolder,
    *,
    name: str = GRAPH_FILE,
    network_type: str | None = None,
    passes: Sequence[Pass] = (),
    cut: Cut | None = None,
) -> list[WrittenGraph]:
    """Writes a traced graph, which stays as it is, as `name` beside those that it may share weights with.

    Where it was traced in `TRACED`, `network_type` ("float32", "bfloat16" or
    "float16") is what the network becomes. `passes` run in order on the finished graph. Where a `cut` takes it apart,
    each part gets a number in its name, from 1 on. The same module and inputs give the same bytes.
    """
    model = traced.clone()
    with _quiet():
        if network_type is not None:
            NetworkType(_TYPES[network_type])(model)
        # Before the optimizer, which would compute what it can fold and lose the names of the weights.
        fold_weights(model)
        optimize_ir(model)
        for change in passes:
            change(model)
    model.graph.sort()  # a pass may make a node wait for one that came after it
    # The exporter notes stack traces, with paths of the machine it ran on.
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.ir_version = IR_VERSION
    parts = take_apart(model, cut)
    names = [name] if len(parts) == 1 else [_numbered(name, number) for number in range(1, len(parts) + 1)]
    return [
        WrittenGraph(
            file,
            destination.save(part, file),
            tuple(map(_symbolic, part.graph.inputs)),
            tuple(map(_symbolic, part.graph.outputs)),
        )
        for file, part in zip(names, parts, strict=True)
    ]


def _numbered(name: str, number: int) -> str:
    path = PurePath(name)
    return f"{path.stem}.{number}{path.suffix}"


def _symbolic(value: ir.Value) -> SymbolicValue:
    if value.shape is None or value.dtype is None:
        raise ExportError(f"{value.name!r} enters or leaves a graph, and its type or shape is not known; report it")
    sizes = tuple(size if isinstance(size, int) else _plain(str(size.value)) for size in value.shape)
    return str(value.name), value.dtype.numpy().name, sizes


def _plain(size: str) -> str:
    """The exporter's "F*((w//2))" without parentheses that are not needed; with others, no manifest takes it."""
    around_a_factor = r"\((\w+(?://\d+)?)\)"
    while (plainer := re.sub(around_a_factor, r"\1", size)) != size:
        size = plainer
    return size


def dynamic_shapes(inputs: Sequence[SymbolicValue]) -> dict[str, dict[int, str]]:
    """Which dimension of which input is free, for `export_graph`."""
    return {name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for name, _, shape in inputs}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's remarks about packages and axis names; errors still surface."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
