"""Gives the network of a traced graph its type.

A module is traced once, with float64 where its network's type belongs: no network computes in it, and it rounds none of
the constants. This pass puts float32, float16 or bfloat16 there. Everything that the module keeps in float32 whatever
its network's type is stays as it is. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch

from .edit import converted

TRACED = torch.float64
_PLACEHOLDER = ir.DataType.DOUBLE


@dataclass(frozen=True)
class NetworkType:
    """A pass that replaces the placeholder by `dtype`, and takes out the casts that then change nothing.

    Weights are converted while they are written, from the type in which the module has them.
    """

    dtype: ir.DataType

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        changed = [value for value in _values(graph) if value.dtype == _PLACEHOLDER]
        for value in changed:
            value.type = ir.TensorType(self.dtype)  # a clone of a graph shares the old one
            if value.const_value is not None and value.is_initializer():
                value.const_value = converted(value.const_value, self.dtype)
        for node in graph:
            self._convert_attributes(node)
        for node in list(graph):
            _remove_if_idle(graph, node)
        return bool(changed)

    def _convert_attributes(self, node: ir.Node) -> None:
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _PLACEHOLDER:
                array = attribute.as_tensor().numpy().astype(self.dtype.numpy())
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.Tensor(array, dtype=self.dtype))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _PLACEHOLDER:
            node.attributes["to"] = ir.AttrInt64("to", self.dtype)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _remove_if_idle(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type != "Cast":
        return
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.dtype != node.attributes["to"].as_int() or output.is_graph_output():
        return
    output.replace_all_uses_with(source)
    graph.remove(node, safe=True)
