"""Denoisers in the form whose weights LoRAs change while they run: which there are, and what they are compared with.

Knows forms, torch modules, and how the inputs are named. Knows nothing of what is in a graph, or of files of LoRAs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import onnx_ir as ir
import torch
from mutoscope.bundle.contract import DENOISE, LORA_A, LORA_B, stage_of
from mutoscope.bundle.interface import lora_type
from mutoscope.bundle.manifest import Graph, LoraForm, Parameter
from mutoscope.errors import RequestError
from mutoscope_engines.precisions import PRECISIONS
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .families.family import Form, GraphSource
from .parity import Arrays
from .passes.lora_inputs import LoraInputs

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_TOO_COARSE = ("int8-static", "nvfp4")
_RANK = 3
_SIZE = 0.1  # of the change, relative to the weight that it changes


def with_lora_forms(source: GraphSource) -> GraphSource:
    """A source of a denoiser with a second form of each, after the first, with which it shares its weights.

    Raises:
        RequestError: one is in a precision in which LoRAs cannot change it.
    """
    if stage_of(source.role) != DENOISE:
        return source
    return replace(source, forms=tuple(each for form in source.forms for each in (form, _second(form))))


def _second(form: Form) -> Form:
    if form.precision in _TOO_COARSE:
        others = ", ".join(name for name in PRECISIONS if name not in _TOO_COARSE)
        raise RequestError(
            f"lora_inputs is not for the precision {form.precision}, whose steps are too coarse for what a LoRA "
            f"changes. Leave one of them out; lora_inputs is for {others}"
        )
    return replace(form, lora_inputs=True)


def takes_loras(form: Form, model: nn.Module) -> LoraInputs:
    """The pass that gives the graph of a network its inputs; the last of a form."""
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return LoraInputs(shapes, _TYPES[lora_type(form.precision)])


def parameters_of(model: nn.Module, original_name: Callable[[str], str]) -> dict[str, Parameter]:
    """What the manifest says of the parameters of a network, by which files of LoRAs are understood."""
    return {
        name: Parameter(shape=tuple(weight.shape), original=original_name(name))
        for name, weight in model.named_parameters()
    }


def lora_forms(written: Iterable[tuple[Sequence[Graph], Mapping[str, Parameter]]]) -> tuple[LoraForm, ...]:
    """For each denoiser its graphs with LoRA inputs, in all precisions."""
    forms: dict[str, LoraForm] = {}
    for parts, parameters in written:
        role = parts[0].role
        before = forms[role].graphs if role in forms else ()
        forms[role] = LoraForm(role=role, parameters=dict(parameters), graphs=(*before, *parts))
    return tuple(forms.values())


@contextmanager
def changed_by_lora(model: nn.Module, graphs: Iterable[Graph]) -> Iterator[Arrays]:
    """Inside it every weight that the graph has LoRA inputs for is `W + A·B`, computed where it is read.

    Gives A and B by the names of these inputs, f32, exact in float16. The module's own weights stay as they are.
    """
    named = {tensor.name.removesuffix(LORA_A) for graph in graphs for tensor in graph.inputs if LORA_A in tensor.name}
    generator = torch.Generator().manual_seed(0)
    arrays: Arrays = {}
    for name in sorted(named):
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        weight = getattr(module, attribute).detach().float().flatten(1)
        a = torch.randn(weight.shape[1], _RANK, generator=generator).half().float()
        size = _SIZE * float(weight.square().mean().sqrt()) / _RANK**0.5
        b = (size * torch.randn(_RANK, weight.shape[0], generator=generator)).half().float()
        parametrize.register_parametrization(module, attribute, _Sum(a, b), unsafe=True)
        arrays |= {f"{name}{LORA_A}": a.numpy(), f"{name}{LORA_B}": b.numpy()}
    try:
        yield arrays
    finally:
        for name in sorted(named):
            path, _, attribute = name.rpartition(".")
            parametrize.remove_parametrizations(model.get_submodule(path), attribute, leave_parametrized=False)


class _Sum(nn.Module):
    """`W + A·B` in float32, in the shape of W."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self._a, self._b = a, b

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float() + (self._a @ self._b).T.reshape(weight.shape)
