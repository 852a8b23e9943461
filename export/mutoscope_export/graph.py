"""Writes a torch module as an ONNX file with its weights beside it.

Knows the torch exporter, the versions of the format and how to keep memory small. Knows nothing of models: what is in
the graph is the module's business, what is changed in it the passes'.

The exporter sees only shapes. Weights stay where the module has them until they are written, and are converted there,
one at a time: a bfloat16 checkpoint becomes a float32 graph without ever being float32 in memory, or a bfloat16 graph
without any conversion. A module is traced once for all types of its network (`passes.network_type`).
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass
from onnxscript.optimizer import optimize_ir
from torch import Tensor

from mutoscope_export.passes.fold_weights import fold_weights
from mutoscope_export.passes.network_type import NetworkType
from mutoscope_export.weight_files import StoredWeights, WeightFolder

OPSET = 23
IR_VERSION = 10
GRAPH_FILE = "model.onnx"

Pass = Callable[[ir.Model], bool]

NETWORK = "network"
SymbolicValue = tuple[str, str, tuple[int | str, ...]]
"""Name, dtype and shape of an input or output; a string in the shape is a symbol, or a multiple of one ("2*h").

The dtype `NETWORK` is that of the network, which each form of a graph chooses.
"""

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


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
) -> StoredWeights:
    """Writes a traced graph, which stays as it is, as `name` beside those that it may share weights with.

    Where it was traced in `TRACED`, `network_type` ("float32", "bfloat16" or
    "float16") is what the network becomes. `passes` run in order on the finished graph. The same module and inputs give
    the same bytes.
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
    # The exporter notes stack traces, with paths of the machine it ran on.
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.ir_version = IR_VERSION
    return destination.save(model, name)


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
