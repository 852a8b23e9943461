"""Arrays of PyCUDA, CuPy and torch into `CudaDevice` and out of it, over the stub driver, by stand-ins.

Each stand-in has the protocols of its library and no other, as that library's source has them:
`pycuda/gpuarray.py` and `pycuda/driver.py`, `cupy/_core/core.pyx`, `torch/_tensor.py` and `ATen/DLConvertor.cpp`.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from cuda.core import Buffer
from cuda.core.utils import StridedMemoryView
from mutoscope_engines.device.cuda import CudaDevice
from mutoscope_engines.device.device import DeviceTensor
from mutoscope_engines.device.session import allocate_tensor
from mutoscope_engines.errors import ShapeError

pytestmark = pytest.mark.gpu
LEGACY_STREAM = 1  # CU_STREAM_LEGACY of cuda.h


class Array:
    """Values on the device, and a view of them. Strides are in elements, `None` for C order."""

    def __init__(
        self, device: CudaDevice, values: Any, strides: tuple[int, ...] | None = None, shape: Any = None
    ) -> None:
        self.values = np.array(values, order="C")
        self.memory = allocate_tensor(device, self.values.shape, str(self.values.dtype))
        device.upload(self.memory.address, self.values)
        self.shape, self.strides = tuple(shape or self.values.shape), strides
        self.asked: list[Any] = []  # the streams that a reader named

    @property
    def own_strides(self) -> tuple[int, ...]:
        return (
            tuple(each // self.values.itemsize for each in self.values.strides)
            if self.strides is None
            else self.strides
        )

    def facts(self, **others: Any) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.values.dtype.str, "data": (self.memory.address, False)} | others

    def capsule(self, strides: tuple[int, ...]) -> Any:
        buffer = Buffer.from_handle(self.memory.address, self.memory.size, owner=self)
        return StridedMemoryView.from_buffer(buffer, self.shape, strides, dtype=self.values.dtype).__dlpack__(stream=-1)


class PycudaArray(Array):
    """`pycuda.gpuarray.GPUArray`: the array interface alone, always with strides, and with no stream to wait for."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = tuple(each * self.values.itemsize for each in self.own_strides)
        return self.facts(strides=strides, stream=None, version=3)


class CupyArray(Array):
    """`cupy.ndarray`: both protocols; its `__dlpack__` takes a stream by CUDA's numbers and refuses 0."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = None if self.strides is None else tuple(each * self.values.itemsize for each in self.strides)
        return self.facts(strides=strides, stream=LEGACY_STREAM, version=3)

    def __dlpack__(self, stream: int | None = None) -> Any:
        if stream is not None and (not isinstance(stream, int) or stream < -1 or stream == 0):
            raise ValueError(f"the valid stream is -1, 1, 2, or any larger value, but {stream} was provided")
        self.asked.append(stream)
        return self.capsule(self.own_strides)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class CupyByInterface(Array):
    """The same where only the array interface is looked at."""

    __cuda_array_interface__ = CupyArray.__cuda_array_interface__


class TorchTensor(Array):
    """`torch.Tensor`: version 2 of the array interface, and DLPack, where the stride of an axis of one entry is 1."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.facts(strides=None, version=2)

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        self.asked.append(stream)
        pairs = zip(self.shape, self.own_strides, strict=True)
        return self.capsule(tuple(1 if size < 2 else stride for size, stride in pairs))

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


LIBRARIES = [PycudaArray, CupyArray, CupyByInterface, TorchTensor]
VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.int64).reshape(1, 6),  # an axis of one entry, whose stride says nothing
    np.arange(4, dtype=np.uint8).reshape(1, 1, 4, 1),
    np.array(7, np.float32),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("values", VALUES, ids=lambda values: "x".join(map(str, values.shape)) or "scalar")
def test_an_array_goes_in_where_it_lies(device: CudaDevice, library: type[Array], values: Any) -> None:
    theirs = library(device, values)
    adopted = device.adopt(theirs)
    assert (adopted.address, adopted.shape, adopted.dtype) == (theirs.memory.address, values.shape, str(values.dtype))
    np.testing.assert_array_equal(adopted.numpy(), values)


@pytest.mark.parametrize("library", [CupyArray, TorchTensor])
def test_its_library_is_told_which_stream_is_to_wait(device: CudaDevice, library: type[Array]) -> None:
    theirs = library(device, VALUES[0])
    device.adopt(theirs)
    assert theirs.asked == [device.stream]


@pytest.mark.parametrize("library", LIBRARIES[:3])
@pytest.mark.parametrize("shape_and_strides", [((3, 2), (1, 3)), ((2, 2), (3, 1)), ((2, 3), (0, 1))])
def test_an_array_in_another_order_is_refused_with_what_to_do(
    device: CudaDevice, library: type[Array], shape_and_strides: Any
) -> None:
    shape, strides = shape_and_strides
    with pytest.raises(
        ShapeError,
        match=rf"shape {shape} has strides {strides}; make it contiguous first".replace("(", r"\(").replace(")", r"\)"),
    ):
        device.adopt(library(device, VALUES[0], strides, shape))


class ReadOnly(PycudaArray):
    """Of an exporter that lends its memory to be read, as we do."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return super().__cuda_array_interface__ | {"data": (self.memory.address, True)}


def test_an_array_that_is_only_to_be_read_goes_in(device: CudaDevice) -> None:
    assert device.adopt(ReadOnly(device, VALUES[0])).numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


class OldInterface(Array):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.facts(strides=None, version=2)


class Masked(PycudaArray):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return super().__cuda_array_interface__ | {"mask": self}


@pytest.mark.parametrize("kind", [OldInterface, Masked, lambda device, values: object(), lambda device, values: [1, 2]])
def test_what_is_no_array_that_can_be_read_is_refused_in_our_words(device: CudaDevice, kind: Any) -> None:
    with pytest.raises(ShapeError, match="cannot be read as an array on the GPU"):
        device.adopt(kind(device, VALUES[0]))


def out(device: CudaDevice, values: Any) -> DeviceTensor:
    tensor = allocate_tensor(device, values.shape, str(values.dtype))
    device.upload(tensor.address, values)
    return tensor


@pytest.mark.parametrize("values", VALUES, ids=lambda values: "x".join(map(str, values.shape)) or "scalar")
def test_a_tensor_has_what_each_library_reads(device: CudaDevice, values: Any) -> None:
    tensor = out(device, values)
    facts = tensor.__cuda_array_interface__
    # PyCUDA passes the first of "data" to a kernel, and knows no stream; CuPy waits for "stream", if it is not 0.
    assert facts["data"] == (tensor.address, False) and facts["stream"] == device.stream > 2
    assert (facts["shape"], facts["strides"], facts["version"]) == (values.shape, None, 3)
    assert np.dtype(facts["typestr"]) == values.dtype
    # `cupy.from_dlpack` and `torch.from_dlpack` ask for the device, and give the stream that they read on.
    assert tensor.__dlpack_device__() == (2, 0)
    for stream in (LEGACY_STREAM, 2, -1, None):
        assert "dltensor" in repr(tensor.__dlpack__(stream=stream))


def test_what_was_lent_stays_until_it_is_given_back(device: CudaDevice) -> None:
    tensor = out(device, VALUES[0])
    view = StridedMemoryView.from_dlpack(tensor, stream_ptr=-1)
    address = tensor.address
    del tensor
    gc.collect()
    other = out(device, VALUES[0] + 1)
    assert other.address != address == view.ptr
