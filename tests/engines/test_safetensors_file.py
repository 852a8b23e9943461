"""The reader agrees with the format's own library about good files, and refuses what is not as the format has it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope_engines.errors import GraphError
from mutoscope_engines.safetensors_file import MOST_HEADER_BYTES, SafetensorsFile
from safetensors.numpy import save_file

FOUR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def file_of(folder: Path, header: Any, data: bytes = bytes(16)) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path


def test_names_shapes_metadata_and_values_are_those_that_the_library_wrote(tmp_path: Path) -> None:
    written = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.float16([1.5, -2]),
        "none": np.zeros((0, 3), np.int8),
        "scalar": np.array(7, np.int64),
    }
    save_file(written, tmp_path / "x.safetensors", {"format": "pt"})
    opened = SafetensorsFile(tmp_path / "x.safetensors")
    assert opened.metadata == {"format": "pt"}
    assert opened.tensors.keys() == written.keys()
    assert np.array_equal(opened.floats("half"), [1.5, -2])
    for name, array in written.items():
        assert opened.tensors[name].shape == array.shape
        assert np.array_equal(np.frombuffer(opened.read(name), array.dtype).reshape(array.shape), array)
    assert opened.read("matrix").readonly


def test_numbers_of_every_type_of_floats_are_read_as_float32(tmp_path: Path) -> None:
    written = {"F64": np.float64([[1.5], [-2]]), "F32": np.float32([[1.5], [-2]]), "F16": np.float16([[1.5], [-2]])}
    save_file(written, tmp_path / "x.safetensors")
    opened = SafetensorsFile(tmp_path / "x.safetensors")
    read = [opened.floats(name) for name in written]
    brain = {"BF16": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}}
    read.append(SafetensorsFile(file_of(tmp_path, brain, b"\xc0\x3f\x00\xc0")).floats("BF16"))
    for found in read:
        assert found.dtype == np.float32
        assert np.array_equal(found, [[1.5], [-2]])


@pytest.mark.parametrize("way", ["cut short", "rewritten", "replaced"])
def test_numbers_of_a_file_that_was_written_to_since_are_refused(tmp_path: Path, way: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(4, np.float32)}, path)
    opened, before = SafetensorsFile(path), path.stat().st_mtime_ns
    if way == "cut short":
        os.truncate(path, 8)
    else:
        save_file({"a": np.ones(4, np.float32)}, tmp_path / "new")
        if way == "replaced":
            os.replace(tmp_path / "new", path)
        else:
            path.write_bytes((tmp_path / "new").read_bytes())
        os.utime(path, ns=(before, before + 1_000_000))
    with pytest.raises(GraphError, match=r"x\.safetensors was written to while it was used; open it again"):
        opened.floats("a")


def test_numbers_of_a_file_that_was_written_to_while_its_header_was_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, loads = file_of(tmp_path, {"a": FOUR}), json.loads
    os.utime(path, ns=(0, 0))

    def written_to_meanwhile(header: str, **how: Any) -> Any:
        file_of(tmp_path, {"b": FOUR})
        return loads(header, **how)

    monkeypatch.setattr(json, "loads", written_to_meanwhile)
    with pytest.raises(GraphError, match="was written to while it was used"):
        SafetensorsFile(path).floats("a")


@pytest.mark.parametrize(
    "header, said",
    [
        ({"a": FOUR | {"data_offsets": [4, 20]}}, "does not begin where"),
        ({"a": FOUR, "b": FOUR}, "does not begin where"),
        ({"a": FOUR | {"shape": [5]}}, "does not fill its bytes"),
        ({"a": FOUR | {"shape": [1 << 62, 4]}}, "does not fill its bytes"),
        ({"a": FOUR | {"shape": [-4]}}, "has the shape"),
        ({"a": FOUR | {"shape": [True, 4]}}, "has the shape"),
        ({"a": FOUR | {"shape": 4}}, "has the shape"),
        ({"a": FOUR | {"data_offsets": [16, 0]}}, "has the shape"),
        ({"a": FOUR | {"data_offsets": [0, 16, 32]}}, "has the shape"),
        ({"a": FOUR | {"dtype": "Q4_K"}}, "is of type 'Q4_K'"),
        ({"a": FOUR | {"dtype": ["F32"]}}, "is of type"),
        ({"a": FOUR | {"more": 1}}, "has other fields"),
        ({"a": [1]}, "has other fields"),
        ({"a": FOUR | {"shape": [3], "data_offsets": [0, 12]}}, "end at byte"),
        ({"__metadata__": {"a": 1}, "a": FOUR}, "text to text"),
        ([FOUR], "not a JSON object"),
        (b"\xff\xfe", "utf-8"),
        (b"{", "Expecting"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": {}, "a": {}}', "twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)  # fmt: skip
def test_a_header_that_contradicts_the_format_or_the_file_is_refused(tmp_path: Path, header: Any, said: str) -> None:
    with pytest.raises(GraphError, match=said):
        SafetensorsFile(file_of(tmp_path, header))


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", (1 << 60).to_bytes(8, "little") + b"{}", (3).to_bytes(8, "little") + b"{}"],
    ids=["empty", "shorter than the length", "an absurd length", "cut off"],
)
def test_a_length_that_the_file_cannot_have_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(GraphError, match=r"x\.safetensors .* its header would have"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_header_that_takes_too_much_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MOST_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MOST_HEADER_BYTES)  # of which nothing is on the disk
    with pytest.raises(GraphError, match="its header would have"):
        SafetensorsFile(path)


@settings(max_examples=50, deadline=None)  # a busy disk is slow
@given(st.data())
def test_a_file_with_changed_bytes_is_refused_or_stays_within_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = file_of(tmp_path_factory.getbasetemp(), {"a": FOUR, "__metadata__": {"b": "c"}})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        opened = SafetensorsFile(path)
    except GraphError:
        return
    assert all(len(opened.read(name)) == each.end - each.begin for name, each in opened.tensors.items())
