"""What an ONNX file says of itself, read without any library: its inputs and outputs, and where its weights lie.

For backends whose library forgets the names of symbols, or opens any file that a graph names. Knows the wire format of
protocol buffers, and of ONNX's messages the few fields on the way to these facts. Knows nothing of operators.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import GraphError
from .session import TensorSpec

ONNX_TYPES = {"float32": 1, "uint8": 2, "int64": 7, "bool": 9, "float16": 10, "bfloat16": 16}  # TensorProto.DataType
_NAMES = {number: name for name, number in ONNX_TYPES.items()}

# Field numbers of onnx.proto. For each message on the way to a tensor's external data, the fields that lead on.
_LEADS_ON = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry of external data"},
}
_MODEL_GRAPH = 7
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_KEY, _VALUE = 1, 2


@dataclass(frozen=True)
class OnnxFile:
    """`inputs` and `outputs` are in the order of the graph; `locations` are relative to its folder, or should be."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    locations: frozenset[str]


def read_onnx_file(path: Path) -> OnnxFile:
    """Reads what a graph says of itself, and refuses one whose weights are not in its folder.

    Raises:
        GraphError: it is not there, damaged, or no graph; an input or output has a type that no bundle has; or weights
            lie elsewhere, be it through a link.
    """
    name = f"{path.parent.name}/{path.name}"
    advice = "verify the bundle, or export it again"
    try:
        with path.open("rb") as file:
            # Unmapped with the last view of it, which an error's traceback may hold.
            read = _read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise GraphError(f"{name} is not an ONNX graph: {error}; {advice}") from error
    folder = path.parent.resolve()
    for location in sorted(read.locations):
        if not (folder / location).resolve().is_relative_to(folder):
            raise GraphError(f"{name} has weights outside its folder, in {location!r}; {advice}")
    return read


def _read(model: memoryview) -> OnnxFile:
    graphs = [value for field, value in _fields(model) if field == _MODEL_GRAPH and isinstance(value, memoryview)]
    if len(graphs) != 1:
        raise ValueError(f"it holds {len(graphs)} graphs; it must hold one")
    ends: dict[int, list[TensorSpec]] = {_GRAPH_INPUT: [], _GRAPH_OUTPUT: []}
    for field, value in _fields(graphs[0]):
        if field in ends and isinstance(value, memoryview):
            ends[field].append(_spec(value))
    locations = frozenset(_locations(model, "model"))
    return OnnxFile(tuple(ends[_GRAPH_INPUT]), tuple(ends[_GRAPH_OUTPUT]), locations)


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    leads_on = _LEADS_ON[kind]
    for field, value in _fields(message):
        if field not in leads_on or not isinstance(value, memoryview):
            continue
        if kind != "tensor":
            yield from _locations(value, leads_on[field])
        elif _text(value, _KEY) == "location":
            yield _text(value, _VALUE)


def _spec(value_info: memoryview) -> TensorSpec:
    name = _text(value_info, 1)
    tensor = _message(_message(value_info, 2), 1)  # of the types, that of a tensor
    dtype = next((value for field, value in _fields(tensor) if field == 1), None)
    if dtype not in _NAMES:
        raise ValueError(f"{name!r} has the TensorProto type {dtype}; allowed: {', '.join(ONNX_TYPES)}")
    axes = [value for field, value in _fields(_message(tensor, 2)) if field == 1 and isinstance(value, memoryview)]
    return TensorSpec(name, _NAMES[dtype], tuple(_size(axis, f"{name}.{i}") for i, axis in enumerate(axes)))


def _size(axis: memoryview, otherwise: str) -> int | str:
    """A number or a symbol; an axis with neither gets a name that no other axis has."""
    for field, value in _fields(axis):
        if field == 1 and isinstance(value, int):
            return value
    return _text(axis, 2) or otherwise


def _message(parent: memoryview, field: int) -> memoryview:
    found = [value for number, value in _fields(parent) if number == field and isinstance(value, memoryview)]
    return found[-1] if found else memoryview(b"")


def _text(parent: memoryview, field: int) -> str:
    return bytes(_message(parent, field)).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or what it holds.

    Raises:
        ValueError: the message ends too early.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            number, position = _varint(message, position)
            yield field, number
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > len(message):
            raise ValueError("it ends too early")
        yield field, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
