"""Parameters of every component of the supported checkpoints, and their bytes in each type and precision.

    python -m benchmarks.model_sizes [--output FILE.json]

Counted from configurations, on the device that holds no data; no weight is read. Of `bytes`, those by type are what a
checkpoint takes in it, and those by precision what the weights of the graph take in a bundle: of a text encoder and of
each denoiser, in NVFP4 with every layer that may be in four bits. What a graph has beside weights is less than a
thousandth of it.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .real_sizes import MODELS, Model, configuration, cut_to
from .reporting import write_result

TYPES = {"float32": 4, "bfloat16": 2}
PRECISIONS = {"text_encoder": ("int8", "bf16"), "transformer": ("int8", "bf16", "fp8", "int8-static", "nvfp4")}
SCALE_BYTES = {"int8": 4, "fp8": 2, "int8-static": 2}  # of an output channel
NVFP4_BYTES = 9 / 16  # of a weight: half a byte, and a byte for each 16


def sizes(model: Model) -> Iterator[dict[str, Any]]:
    """A row for each component that has weights."""
    for component in model.networks():
        network = without_weights(model, component)
        count = sum(weight.numel() for weight in network.parameters())
        in_types = {name: count * size for name, size in TYPES.items()}
        precisions = PRECISIONS.get(component.removesuffix("_2"), ())
        in_precisions = {name: _in_precision(name, component, network) for name in precisions}
        yield {"component": component, "parameters": count, "bytes": in_types | in_precisions}


def without_weights(model: Model, component: str) -> Any:
    """One of its networks, on the device that holds no data."""
    with tempfile.TemporaryDirectory() as folder:
        return configuration(model, Path(folder) / "checkpoint").without_weights(component)


def weight_bytes(model: Model, component: str, precision: str) -> int:
    """Of the graph of a component in a precision."""
    return _in_precision(precision, component, without_weights(model, component))


def lora_rows_of_a_block(model: Model) -> int:
    """How many rows of R numbers A and B have together, for all linear layers of a block of the denoiser."""
    block = without_weights(cut_to(model, 1), "transformer").blocks[0]
    return sum(sum(weight.shape) for weight in block.parameters() if weight.ndim == 2)


def _in_precision(precision: str, component: str, network: Any) -> int:
    from mutoscope_export.families.wan import denoiser, text
    from mutoscope_export.families.wan.precision_policy import CALIBRATED

    if component == "text_encoder":
        table = r"embed_tokens|shared"
        if precision == "int8":
            return _bytes(network, text.QUANTIZABLE_WEIGHTS, table, precision)
        return _bytes(network, None, f"{text.QUANTIZABLE_WEIGHTS}|{table}")
    if precision == "int8":
        return _bytes(network, denoiser.QUANTIZABLE_WEIGHTS, None, precision)
    half = rf"{denoiser.QUANTIZABLE_WEIGHTS}|vace_blocks\.\d+\.proj_(in|out)\.weight"
    if policy := CALIBRATED.get(precision):
        linears = policy.layers([name for name, _ in network.named_modules()], policy.default).linears
        narrow = "|".join(rf"^{re.escape(name)}\.weight$" for name in linears)
        return _bytes(network, narrow, half, precision)
    return _bytes(network, None, half)


def _bytes(network: Any, narrow: str | None, half: str | None, precision: str = "") -> int:
    """With weights of one byte, of two bytes, and of four for all others.

    Args:
        narrow: a regular expression for weights in eight bits, whose output channels have scales, or in NVFP4;
            searched.
        half: one for weights in 16 bits, their biases included.
    """
    total = 0
    for name, weight in network.named_parameters():
        if narrow and re.search(narrow, name):
            if precision == "nvfp4":
                total += int(weight.numel() * NVFP4_BYTES)
            else:
                total += weight.numel() + len(weight) * SCALE_BYTES[precision]
        elif half and re.search(half, re.sub(r"bias$", "weight", name)):
            total += 2 * weight.numel()
        else:
            total += 4 * weight.numel()
    return total


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_sizes", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    write_result(given.output, [{"model": name, **row} for name, model in MODELS.items() for row in sizes(model)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
