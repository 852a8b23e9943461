"""Takes a graph apart into graphs that make it again when they run one after the other.

Knows the format and what depends on what. Knows nothing of models, files or precisions.

A value that a later part takes is an output of the part that makes it, and an input of that name of those that take it.
Shapes, and what depends on weights alone, are computed anew where they are needed. Inputs that are marked as
`OF_WEIGHTS`, such as those that change weights, count as weights.

A row `[1, B*S, ...]` passes as `[B, S, ...]` where an input of the whole begins with `B`. A compiler knows that two
inputs have one size by its name alone, and it fuses attention only where it sees that all it joins have the same sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..options import DEFAULT_PART_BYTES
from .edit import Tape, constant

OF_WEIGHTS = "of_weights"  # in the `meta` of an input

Nodes = set[ir.Node]
Cut = Callable[[ir.Graph], list[Nodes]]  # the nodes of every part but the last, which has the rest


def made_of(*names: str) -> Cut:
    """One part before the rest: what depends on these inputs and on no other."""
    return lambda graph: [{node for node, inputs in _inputs_of(graph) if inputs and inputs <= set(names)}]


@dataclass(frozen=True)
class Blocks:
    """Parts of whole blocks, as many in each, and as few as have at most `most_bytes` of weights or are single blocks.

    `pattern` finds the number of a block in the name of one of its weights, as its first group.
    """

    pattern: str
    most_bytes: int = DEFAULT_PART_BYTES

    def __call__(self, graph: ir.Graph) -> list[Nodes]:
        weights = graph.initializers.values()
        numbers = {value: int(found[1]) for value in weights if (found := re.search(self.pattern, value.name or ""))}
        count = max(numbers.values(), default=-1) + 1
        order = list(graph)
        blocks: dict[ir.Value, int] = {**numbers}  # the last block on whose weights a value depends
        for node in order:
            depends = [blocks[value] for value in node.inputs if value in blocks]
            if depends:
                blocks |= dict.fromkeys(node.outputs, max(depends))
        parts = [set(order)]
        while len(parts) < count and any(_weight_bytes(part) > self.most_bytes for part in parts):
            parts = _assigned(order, blocks, count, len(parts) + 1)
        return parts[:-1]


def _assigned(order: list[ir.Node], blocks: Mapping[ir.Value, int], count: int, num_parts: int) -> list[Nodes]:
    """The nodes of each part. What depends on no block is where it is first needed, or else in the last."""
    parts: list[Nodes] = [set() for _ in range(num_parts)]
    found: dict[ir.Node, int] = {}
    for node in reversed(order):
        needed = [found[user] for value in node.outputs for user, _ in value.uses()]
        depends = [blocks[value] for value in node.outputs if value in blocks]
        found[node] = max(depends) * num_parts // count if depends else min(needed, default=num_parts - 1)
        parts[found[node]].add(node)
    return parts


def _weight_bytes(nodes: Nodes) -> int:
    weights = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    return sum(value.const_value.nbytes for value in weights if value.const_value is not None)


def take_apart(model: ir.Model, cut: Cut | None) -> list[ir.Model]:
    """The parts of a model in the order in which they run; the model itself where there is nothing to cut.

    They share its weights; it stays as it is.

    Raises:
        ValueError: a part after it reads an output of the model, which could then not leave the chain.
    """
    order = list(model.graph)
    parts = [part for part in cut(model.graph) if part] if cut else []
    parts.append({node for node in order if not any(node in part for part in parts)})
    if len(parts) == 1:
        return [model]
    constant = {value for node, inputs in _inputs_of(model.graph) if not inputs for value in node.outputs}
    taken = [_taken(part, parts[:number], constant) for number, part in enumerate(parts)]
    if read := sorted(str(value.name) for values in taken for value in values if value.is_graph_output()):
        raise ValueError(f"the graph cannot be cut here: {', '.join(read)} is an output, and a later part reads it")
    rows = {value.name: split for values in taken for value in values if (split := _split(model.graph, value))}
    models = []
    for number, part in enumerate(parts):
        later = set().union(*taken[number + 1 :])
        given = [value.name for node in order if node in part for value in node.outputs if value in later]
        finished = [value.name for value in model.graph.outputs if value.producer() in part]
        models.append(_part(model, {value.name for value in taken[number]}, [*given, *finished], rows))
    return models


def _taken(part: Nodes, before: Collection[Nodes], constant: Collection[ir.Value]) -> set[ir.Value]:
    """What the nodes of a part take from parts before it, where they do not compute it anew."""
    found: set[ir.Value] = set()
    seen, open_nodes = set(part), list(part)
    while open_nodes:
        for value in open_nodes.pop().inputs:
            producer = None if value is None else value.producer()
            if value is None or producer is None or producer in seen or not any(producer in other for other in before):
                continue
            if value.dtype == ir.DataType.INT64 or value in constant:
                seen.add(producer)
                open_nodes.append(producer)
            else:
                found.add(value)
    return found


def _part(
    model: ir.Model,
    taken: Collection[str | None],
    outputs: Iterable[str | None],
    rows: Mapping[str | None, ir.Shape],
) -> ir.Model:
    part = model.clone()
    values = {value.name: value for node in part.graph for value in node.outputs}
    first, *_ = part.graph
    for name in (name for name in values if name in taken):
        value = values[name]
        value.name = f"{name}.elsewhere"
        given = read = ir.Value(name=name, type=value.type, shape=value.shape)
        if split := rows.get(name):
            given.shape = split
            tape = Tape(part.graph, first, f"{name}.row")
            read = tape("Reshape", given, tape.numbers(1, -1, *_widths(split)), dtype=value.dtype, shape=value.shape)
        ir.convenience.replace_all_uses_with(value, read)
        part.graph.inputs.append(given)
    part.graph.outputs[:] = [
        _apart(part.graph, values[name], rows[name]) if name in rows else values[name] for name in outputs
    ]
    RemoveUnusedNodesPass()(part)
    part.graph.inputs[:] = [value for value in part.graph.inputs if value.uses() or value.is_graph_output()]
    return part


def _apart(graph: ir.Graph, value: ir.Value, split: ir.Shape) -> ir.Value:
    """What a part gives for a row of its own."""
    name = value.name
    value.name = f"{name}.in_a_row"
    tape = ir.tape.Tape(graph)
    count = tape.op("Shape", [_that_begins_with(graph, str(split[0]))], {"start": 0, "end": 1})
    rest = constant(graph, f"{name}.rest", np.array([-1, *_widths(split)]))
    sizes = tape.op("Concat", [count, rest], {"axis": 0})
    for size, suffix, length in ((count, "count", 1), (sizes, "sizes", len(split))):
        size.name, size.dtype, size.shape = f"{name}.{suffix}", ir.DataType.INT64, ir.Shape([length])
    given = tape.op("Reshape", [value, sizes])
    given.name, given.type, given.shape = name, value.type, split
    return given


def _widths(split: ir.Shape) -> tuple[int, ...]:
    """The sizes behind the two that make a row."""
    return tuple(size for size in split[2:] if isinstance(size, int))


def _split(graph: ir.Graph, value: ir.Value) -> ir.Shape | None:
    """The shape in which a row passes, and None for what is no row."""
    if value.shape is None or len(value.shape) < 3 or value.shape[0] != 1:
        return None
    leading, _, rest = str(value.shape[1]).partition("*")
    splits = rest and _that_begins_with(graph, leading) is not None
    return ir.Shape([leading, rest, *value.shape[2:]]) if splits else None


def _that_begins_with(graph: ir.Graph, symbol: str) -> ir.Value | None:
    """The input of the fewest axes whose first has this size."""
    found = [value for value in graph.inputs if value.shape is not None and list(value.shape[:1]) == [symbol]]
    return min(found, key=lambda value: len(value.shape or ()), default=None)


def _inputs_of(graph: ir.Graph) -> Iterator[tuple[ir.Node, set[str | None]]]:
    """Each node with the names of the graph's inputs that it depends on, but for those that count as weights."""
    found: dict[ir.Value, set[str | None]] = {
        value: {value.name} for value in graph.inputs if OF_WEIGHTS not in value.meta
    }
    for node in graph:
        inputs: set[str | None] = set().union(*(found.get(value, set()) for value in node.inputs if value is not None))
        found |= dict.fromkeys(node.outputs, inputs)
        yield node, inputs
