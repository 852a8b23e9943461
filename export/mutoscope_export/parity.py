"""Whether a graph computes what its torch module computes, and that what the checkpoint's own class computes.

Knows modules, sessions and tolerances. Knows nothing of models or files of a bundle.

The module runs first and is freed before the graph is opened, so that a network is never in memory twice. The shapes
are small for the same reason; what a wrong graph gets wrong does not depend on them being large.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutoscope.bundle import Graph
from mutoscope_engines.backends import load_backend
from mutoscope_engines.session import Session, SessionOptions
from numpy.typing import NDArray

from .errors import ExportError

Arrays = dict[str, NDArray[Any]]

# Largest relative L2 difference of a float output. In fp32 the order of sums alone gives up to some 1e-6, and a lost
# bias, a wrong axis or another epsilon above 1e-3. Dynamic int8 gives 1.3e-2 at the width of Wan 1.3B and more in
# narrower layers; a wrong scale gives about 1. Static FP8 has an eighth of int8's steps at the top of a range.
TOLERANCES = {"fp32": 1e-4, "int8": 5e-2, "fp8": 2e-1}
# The same for a network stored in half precision and run so by its own class. Rounding alone moves 2 layers of a random
# UMT5 in bfloat16 by 2e-2 and 24 by half, so this tells only another network; unrelated outputs differ by about 1.4.
_HALF_PRECISION_TOLERANCE = 1.0
# Integers are rounded from floats, and a value halfway between two may fall to either.
INTEGER_TOLERANCE = 1


@dataclass(frozen=True)
class Sample:
    """What a module made of some inputs."""

    inputs: Arrays
    outputs: Arrays


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


def compare(file: Path, graph: Graph, samples: Sequence[Sample]) -> dict[str, Any]:
    """Runs the graph on the samples' inputs with ONNX Runtime on the CPU.

    Returns what goes into the export report.

    Raises:
        ExportError: an output differs beyond the tolerance of the graph's precision, or the file's inputs and outputs
            are not those that `graph` declares.
    """
    tolerance = TOLERANCES[graph.precision]
    with load_backend("onnxruntime").open(file, SessionOptions()) as session:
        _refuse_other_interface(graph, session)
        compared = []
        for sample in samples:
            results = session.run(sample.inputs)
            differences = {
                name: difference(results[name].numpy(), expected) for name, expected in sample.outputs.items()
            }
            shapes = {name: list(value.shape) for name, value in sample.inputs.items()}
            for name, expected in sample.outputs.items():
                _refuse_beyond(tolerance, graph, name, expected, differences[name], shapes)
            compared.append({"input_shapes": shapes, "outputs": differences})
    return {
        "file": graph.file,
        "role": graph.role,
        "precision": graph.precision,
        "relative_l2_tolerance": tolerance,
        "integer_tolerance": INTEGER_TOLERANCE,
        "samples": compared,
    }


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
    measure, limit = _limit(expected, TOLERANCES["fp32"] if exact else _HALF_PRECISION_TOLERANCE)
    if not found[measure] <= limit:
        raise ExportError(
            f"the {component} is not exported as {type(model).__name__} computes it: {measure} is "
            f"{found[measure]:.2g}, at most {limit:g} is allowed. Nothing was published; please report it with the "
            "versions of torch, diffusers and transformers"
        )
    return {"component": component, "against": "checkpoint's own classes", f"{measure}_tolerance": limit, **found}


def difference(given: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    """`max_abs`, and `relative_l2`: the norm of the difference over the norm of what is expected."""
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise ExportError(f"the graph gives {given.dtype} {given.shape}, its network {expected.dtype} {expected.shape}")
    wanted = expected.astype(np.float64)
    off = given.astype(np.float64) - wanted
    norm = float(np.linalg.norm(wanted)) or 1.0
    return {"max_abs": float(np.abs(off).max(initial=0.0)), "relative_l2": float(np.linalg.norm(off)) / norm}


def _refuse_beyond(
    tolerance: float,
    graph: Graph,
    name: str,
    expected: NDArray[Any],
    found: Mapping[str, float],
    shapes: Mapping[str, list[int]],
) -> None:
    measure, limit = _limit(expected, tolerance)
    if not found[measure] <= limit:  # so that NaN is refused, too
        raise ExportError(
            f"{graph.file} does not compute what its network does: {measure} of {name} is {found[measure]:.2g}, at "
            f"most {limit:g} is allowed in {graph.precision}, for inputs {dict(shapes)}. Nothing was published; please "
            "report it with the versions of torch, onnxscript and diffusers"
        )


def _limit(expected: NDArray[Any], tolerance: float) -> tuple[str, float]:
    return ("relative_l2", tolerance) if expected.dtype.kind == "f" else ("max_abs", INTEGER_TOLERANCE)


def _refuse_other_interface(graph: Graph, session: Session) -> None:
    for declared, found in ((graph.inputs, session.inputs), (graph.outputs, session.outputs)):
        wanted = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in declared]
        given = [(spec.name, spec.dtype, len(spec.shape)) for spec in found]
        if wanted != given:
            raise ExportError(f"{graph.file} has {given}, its family declares {wanted}")
