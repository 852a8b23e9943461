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

from .real_sizes import MODELS, Model, configuration
from .reporting import write_result

TYPES = {"float32": 4, "bfloat16": 2}
SCALE_BYTES = {"int8": 4, "fp8": 2, "int8-static": 2}  # of an output channel
NVFP4_BYTES = 9 / 16  # of a weight: half a byte, and a byte for each 16


def sizes(model: Model) -> Iterator[dict[str, Any]]:
    """A row for each component that has weights."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = configuration(model, Path(folder) / "checkpoint")
        for component in model.networks():
            network = checkpoint.without_weights(component)
            count = sum(weight.numel() for weight in network.parameters())
            in_types = {name: count * size for name, size in TYPES.items()}
            yield {"component": component, "parameters": count, "bytes": in_types | _in_precisions(component, network)}


def _in_precisions(component: str, network: Any) -> dict[str, int]:
    if component.startswith("transformer"):
        from mutoscope_export.families.wan.denoiser import QUANTIZABLE_WEIGHTS
        from mutoscope_export.families.wan.precision_policy import CALIBRATED

        modules = [name for name, _ in network.named_modules()]
        found = {"int8": _bytes(network, QUANTIZABLE_WEIGHTS, None, "int8"),
                 "bf16": _bytes(network, None, QUANTIZABLE_WEIGHTS)}  # fmt: skip
        for precision, policy in CALIBRATED.items():
            linears = policy.layers(modules, policy.default).linears
            narrow = "|".join(re.escape(f"{name}.weight") for name in linears)
            found[precision] = _bytes(network, narrow, QUANTIZABLE_WEIGHTS, precision)
        return found
    if component == "text_encoder":
        from mutoscope_export.families.wan.text import QUANTIZABLE_WEIGHTS

        table = r"embed_tokens|shared"
        return {"int8": _bytes(network, QUANTIZABLE_WEIGHTS, table, "int8"),
                "bf16": _bytes(network, None, f"{QUANTIZABLE_WEIGHTS}|{table}")}  # fmt: skip
    return {}


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
