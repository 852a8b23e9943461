"""Whether a graph computes what its torch module computes, and that what the checkpoint's own class computes.

Knows modules, sessions and tolerances. Knows nothing of models or files of a bundle.

The module runs first and is freed before the graph is opened, so that a network is never in memory twice, and of a
graph in parts one part is open at a time. The shapes are small for the same reason; what a wrong graph gets wrong does
not depend on them being large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from mutoscope.bundle.manifest import Graph
from mutoscope_engines.backends import load_backend
from mutoscope_engines.difference import relative_l2
from mutoscope_engines.precisions import base_precision
from mutoscope_engines.session import SessionOptions
from numpy.typing import NDArray

from .errors import ExportError
from .families.family import Form
from .passes.in_float32 import InFloat32
from .passes.nvfp4_in_float32 import nvfp4_in_float32

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """How far a graph may be off: `relative_l2` for a float output, `levels` for an integer one."""

    relative_l2: float
    levels: int


# In fp32 the order of sums alone gives up to some 1e-6, and a lost bias, a wrong axis or another epsilon above 1e-3.
# Integers are rounded from floats, and a value halfway between two may fall to either.
_EXACT = Tolerance(1e-4, 1)
# Weights of a checkpoint of another type rounded to half precision, in arithmetic that is not. UMT5 does not scale its
# scores, so that words in random order move the built-in model's by 6e-2 in bfloat16, and torch's own by as much;
# prompts by 2e-3.
_ROUNDED_WEIGHTS = Tolerance(2e-1, 13)
# Eight bits: E4M3 has a step of 6 to 12 %, which sums over many products average to 1 to 4 % of a network's output.
# int8 gives 1.3e-2 at the width of Wan 1.3B, more in narrower layers, and 7e-2 in a text encoder with outliers. A wrong
# scale gives about 1.
_QUANTIZED = Tolerance(2e-1, 1)
TOLERANCES = {"fp32": _EXACT, "int8": _QUANTIZED}
# Half precision throughout. Rounding alone moves 2 layers of a random UMT5 in bfloat16 by 2e-2 and 24 by half, so this
# tells only another network; unrelated outputs differ by about 1.4.
_ROUNDED = Tolerance(1.0, 255)


@dataclass(frozen=True)
class _Check:
    """A way to run a graph on the CPU, and how far it may then be off."""

    arithmetic: str
    tolerance: Tolerance
    change: InFloat32 | None = None


@dataclass(frozen=True)
class Sample:
    """What a module made of some inputs, with weights that some inputs change."""

    inputs: Arrays
    outputs: Arrays
    of_weights: Arrays = field(default_factory=dict)  # inputs of the graph that the module does not take


def record(
    module: torch.nn.Module, examples: Iterable[Mapping[str, torch.Tensor]], output_names: Sequence[str]
) -> list[Sample]:
    """Runs the module on each example."""
    samples = []
    with torch.no_grad():
        for example in examples:
            made = module.eval()(*example.values())
            outputs = made if isinstance(made, tuple) else (made,)
            samples.append(
                Sample(
                    {name: value.numpy() for name, value in example.items()},
                    {name: value.numpy() for name, value in zip(output_names, outputs, strict=True)},
                )
            )
    return samples


def compare(parts: Mapping[Path, Graph], samples: Sequence[Sample], stored_type: str = "float32") -> dict[str, Any]:
    """Runs the graph on the samples' inputs with ONNX Runtime on the CPU, part by part.

    A graph in half precision runs there as `InFloat32` makes it, twice: with no value rounded, where it may differ from
    its network by what the type of its weights explains, which is nothing where the checkpoint has them in that type
    (`stored_type`); and with each value rounded, which shows how far half precision goes.

    Returns what goes into the export report.

    Raises:
        ExportError: an output differs beyond the tolerance of the graph's precision, or a file's inputs and outputs
            are not those that its `Graph` declares.
    """
    for file, graph in parts.items():
        _refuse_other_interface(file, graph)
    *_, last = parts.values()
    comparisons = [_compare(list(parts), last, samples, check) for check in _checks(last.precision, stored_type)]
    files = [graph.file for graph in parts.values()]
    return {"files": files, "role": last.role, "precision": last.precision, "comparisons": comparisons}


def _checks(precision: str, stored_type: str) -> list[_Check]:
    if precision in TOLERANCES:
        return [_Check("as it is", TOLERANCES[precision])]
    exact = Form(precision).network_type == stored_type
    calibrated = precision != "bf16" and base_precision(precision) == "bf16"
    in_float32 = _QUANTIZED if calibrated else _EXACT if exact else _ROUNDED_WEIGHTS
    return [
        _Check("in float32", in_float32, InFloat32(rounded=False)),
        _Check("with each value rounded", _ROUNDED, InFloat32(rounded=True)),
    ]


def _compare(files: Sequence[Path], graph: Graph, samples: Sequence[Sample], check: _Check) -> dict[str, Any]:
    compared = []
    for sample, results in zip(samples, _run(files, samples, check.change), strict=True):
        differences = {name: difference(results[name], expected) for name, expected in sample.outputs.items()}
        shapes = {name: list(value.shape) for name, value in sample.inputs.items()}
        for name, expected in sample.outputs.items():
            _refuse_beyond(check, graph, name, expected, differences[name], shapes)
        compared.append({"input_shapes": shapes, "outputs": differences})
    return {
        "arithmetic": check.arithmetic,
        "relative_l2_tolerance": check.tolerance.relative_l2,
        "integer_tolerance": check.tolerance.levels,
        "samples": compared,
    }


def _run(files: Sequence[Path], samples: Sequence[Sample], change: InFloat32 | None) -> list[Arrays]:
    """The inputs of each sample and all that the parts make of them.

    Each part runs on all samples before the next is opened, so that one part is in memory.
    """
    values = [{**sample.inputs, **sample.of_weights} for sample in samples]
    for file in files:
        with (
            _changed(file, change) as runnable,
            load_backend("onnxruntime").open(runnable, SessionOptions()) as session,
        ):
            for known in values:
                made = session.run({spec.name: known[spec.name] for spec in session.inputs})
                known |= {name: tensor.numpy() for name, tensor in made.items()}
    return values


@contextmanager
def _changed(file: Path, change: InFloat32 | None) -> Iterator[Path]:
    """A changed graph beside `file`, so that it shares the weights; gone when the `with` ends.

    Weights in NVFP4 are written anew in the network's type, because ONNX Runtime has none of four bits.
    """
    if change is None:
        yield file
        return
    runnable = file.with_name(f"in_float32-{file.name}")
    model = ir.load(file)
    weights = runnable.with_name(f"{runnable.name}.data") if nvfp4_in_float32(model) else None
    change(model)
    try:
        ir.save(model, runnable, external_data=weights and weights.name)
        yield runnable
    finally:
        for written in (runnable, weights):
            if written is not None:
                written.unlink(missing_ok=True)


def compare_with_own_class(
    component: str, model: torch.nn.Module, ours: torch.Tensor, theirs: torch.Tensor
) -> dict[str, Any]:
    """`ours` is what the module to export makes of `model`'s weights, `theirs` what `model` itself makes of them.

    Returns what goes into the export report.

    Raises:
        ExportError: they differ by more than the precision of `model`'s weights explains.
    """
    exact = all(weight.dtype == torch.float32 for weight in model.parameters())
    expected = theirs.numpy()
    found = difference(ours.numpy(), expected)
    # A half precision network is run so by its own class, too, which is no better than any rounding.
    measure, limit = _limit(expected, _EXACT if exact else Tolerance(_ROUNDED.relative_l2, _EXACT.levels))
    if not found[measure] <= limit:
        raise ExportError(
            f"the exported {component} differs from {type(model).__name__}: {measure} is "
            f"{found[measure]:.2g}, and at most {limit:g} is allowed. Nothing was published; please report it with the "
            "versions of torch, diffusers and transformers"
        )
    return {"component": component, "against": "checkpoint's own classes", f"{measure}_tolerance": limit, **found}


def difference(given: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    """`max_abs`, the largest difference of a value, and `relative_l2`.

    Raises:
        ExportError: they differ in shape or type.
    """
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise ExportError(
            f"the graph gives {given.dtype} {given.shape}, and its network {expected.dtype} {expected.shape}"
        )
    off = np.abs(given.astype(np.float64) - expected)
    return {"max_abs": float(off.max(initial=0.0)), "relative_l2": relative_l2([(given, expected)])}


def _refuse_beyond(
    check: _Check,
    graph: Graph,
    name: str,
    expected: NDArray[Any],
    found: Mapping[str, float],
    shapes: Mapping[str, list[int]],
) -> None:
    measure, limit = _limit(expected, check.tolerance)
    if not found[measure] <= limit:  # so that NaN is refused, too
        raise ExportError(
            f"{graph.file} differs from its network: {measure} of {name} is {found[measure]:.2g}, and at "
            f"most {limit:g} is allowed in {graph.precision}, run {check.arithmetic}, for inputs {dict(shapes)}. "
            "Nothing was published; please report it with the versions of torch, onnxscript and diffusers"
        )


def _limit(expected: NDArray[Any], tolerance: Tolerance) -> tuple[str, float]:
    return ("relative_l2", tolerance.relative_l2) if expected.dtype.kind == "f" else ("max_abs", tolerance.levels)


def _refuse_other_interface(file: Path, graph: Graph) -> None:
    written = ir.load(file).graph
    for declared, found in ((graph.inputs, written.inputs), (graph.outputs, written.outputs)):
        wanted = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in declared]
        given = [(value.name, _dtype_name(value), len(value.shape or ())) for value in found]
        if wanted != given:
            raise ExportError(f"{graph.file} has {given}, and its family declares {wanted}")


def _dtype_name(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else value.dtype.numpy().name
