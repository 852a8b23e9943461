"""The stub driver from Python, and the fixtures of the tests over it. Loaded by pytest as a plugin of their process."""

from __future__ import annotations

import ctypes
import gc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.device.cuda import CudaDevice
from mutoscope_engines.device.device import DeviceTensor
from mutoscope_engines.device.session import allocate_tensor

KINDS = ("allocations", "events", "captures", "graphs")  # what must not stay
gc.freeze()  # what was imported need not be looked at in every collection
stub: Any = ctypes.CDLL("libcuda.so.1")


def live(what: str) -> int:
    return int(stub.stub_count(what.encode()))


def fail(function: str, code: int, call: int = 1) -> None:
    """The `call`-th call of a function of the driver, counted from now, gives this error."""
    stub.stub_fail(function.encode(), call, code)


def up(device: CudaDevice, *values: float) -> DeviceTensor:
    tensor = allocate_tensor(device, (len(values),), "float32")
    device.upload(tensor.address, np.array(values, np.float32))
    return tensor


def works(device: CudaDevice) -> None:
    """Upload, capture, replay and download give the right bytes, and leave nothing behind."""
    source, target = up(device, 1, 2, 3), up(device, 0, 0, 0)
    replay = device.capture(lambda: device.copy(target.address, source.address, source.size))
    assert target.numpy().tolist() == [0, 0, 0]
    replay()
    assert target.numpy().tolist() == [1, 2, 3]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # cuda-core only warns of a free that the driver refuses
        yield
    gc.collect()
    assert {what: live(what) for what in KINDS} == dict.fromkeys(KINDS, 0)
    assert live("refused frees") == 0 and not stub.stub_fault_is_pending()


@pytest.fixture
def device() -> CudaDevice:
    return CudaDevice()
