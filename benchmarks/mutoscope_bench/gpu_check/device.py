"""The parts "card" and "device": the driver and `CudaDevice`, without any graph of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mutoscope_engines.device.cuda import CudaDevice, compute_capability
from mutoscope_engines.device.device import DeviceTensor
from mutoscope_engines.device.session import allocate_tensor
from mutoscope_engines.errors import OutOfMemoryError

from .. import nvml
from .part import Facts

MEGABYTE = 2**20
COPIED = 64 * MEGABYTE  # float32 values of it are a quarter
ALLOCATED = 256 * MEGABYTE
ROUNDS = 100


def card(spec: dict[str, Any]) -> Facts:
    """Names, driver, CUDA version, compute capability and memory."""
    from cuda.bindings import driver

    device = CudaDevice()
    _, version = driver.cuDriverGetVersion()
    _, free, total = driver.cuMemGetInfo()
    return {
        "gpus": nvml.gpu_names(),
        "driver": nvml.driver_version(),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "compute_capability": compute_capability(),
        "index": device.index,
        "total_bytes": int(total),
        "free_bytes": int(free),
    }


def device(spec: dict[str, Any]) -> Facts:
    """Each check by itself, on a device of its own."""
    checks: dict[str, str] = {}
    facts: Facts = {"checks": checks}
    for check in (_copies, _captures, _out_of_memory, _failed_capture, _dropped_in_a_capture, _threads, _gives_back):
        name = (check.__doc__ or "").rstrip(".")
        try:
            facts |= check(CudaDevice())
            checks[name] = "passed"
        except Exception as error:
            checks[name] = f"{type(error).__name__}: {error}"
    return facts


def _expect(given: Any, wanted: Any) -> None:
    if not np.array_equal(given, wanted):
        raise ValueError(f"other values than expected: {np.ravel(given)[:4]} and not {np.ravel(wanted)[:4]}")


def _holding(device: CudaDevice, values: Any) -> DeviceTensor:
    with device.turn():
        tensor = allocate_tensor(device, values.shape, str(values.dtype))
        device.upload(tensor.address, values)
    return tensor


def _replays(device: CudaDevice) -> Callable[[float], None]:
    """Captures a copy; what is returned replays it with a value."""
    source, target = (_holding(device, np.zeros(4, np.float32)) for _ in range(2))
    replay = device.capture(lambda: device.copy(target.address, source.address, source.size))

    def run(value: float) -> None:
        device.upload(source.address, np.full(4, value, np.float32))
        replay()
        _expect(target.numpy(), np.full(4, value, np.float32))

    return run


def _copies(device: CudaDevice) -> Facts:
    """what goes up comes down."""
    values = np.random.default_rng(0).standard_normal(COPIED // 4, np.float32)
    tensor = _holding(device, values)
    copied = allocate_tensor(device, tensor.shape, "float32")
    device.synchronize()
    started = time.perf_counter()
    device.upload(tensor.address, values)
    device.synchronize()
    up = time.perf_counter()
    device.copy(copied.address, tensor.address, tensor.size)
    device.synchronize()
    across = time.perf_counter()
    result = copied.numpy()
    down = time.perf_counter()
    _expect(result, values)
    seconds = {"upload": up - started, "copy": across - up, "download": down - across}
    return {f"{name}_gb_per_s": round(COPIED / 1e9 / value, 2) for name, value in seconds.items()}


def _captures(device: CudaDevice) -> Facts:
    """captured work is done when it is replayed."""
    run = _replays(device)
    for value in range(ROUNDS):
        run(value)
    return {}


def _out_of_memory(device: CudaDevice) -> Facts:
    """more memory than there is is refused in words, and what follows runs."""
    more = 4 * device.free_bytes()
    try:
        device.allocate(more)
    except OutOfMemoryError as error:
        _replays(device)(1)
        return {"out_of_memory": str(error)}
    raise ValueError(f"{more} bytes were allocated")


def _failed_capture(device: CudaDevice) -> Facts:
    """after a capture that failed the stream captures no more."""

    def fail() -> None:
        raise InterruptedError

    try:
        device.capture(fail)
    except InterruptedError:
        _replays(device)(1)
    return {}


def _dropped_in_a_capture(device: CudaDevice) -> Facts:
    """memory that another thread drops during a capture does not end it."""
    source, target = (_holding(device, np.full(4, value, np.float32)) for value in (1, 2))
    dropped = [_holding(device, np.zeros(4, np.float32))]

    def queue() -> None:
        thread = threading.Thread(target=dropped.clear)
        thread.start()
        thread.join()
        device.copy(target.address, source.address, source.size)

    device.capture(queue)()
    _expect(target.numpy(), source.numpy())
    return {}


def _threads(device: CudaDevice) -> Facts:
    """two threads get their own values while a third captures."""
    errors: list[Exception] = []

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            for _ in range(ROUNDS):
                work(number)
        except Exception as error:
            errors.append(error)

    def carry(number: int) -> None:
        values = np.full(1000, number, np.float32)
        _expect(_holding(device, values).numpy(), values)

    works = [carry, carry, lambda number: _replays(device)(number)]
    threads = [threading.Thread(target=guarded, args=[work, number]) for number, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {}


def _gives_back(device: CudaDevice) -> Facts:
    """memory that is dropped is free again."""
    before = device.free_bytes()
    memory = device.allocate(ALLOCATED)
    during = device.free_bytes()
    del memory
    after = device.free_bytes()
    if before - during < ALLOCATED / 2 or after - during < ALLOCATED / 2:
        raise ValueError(f"{before} bytes were free before, {during} with {ALLOCATED} allocated, {after} after")
    return {}
