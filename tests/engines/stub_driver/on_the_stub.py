"""The real cuda-core and `CudaDevice` over the stub driver. `test_stub_driver.py` runs this in a process of its own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.device.cuda import CudaDevice, compute_capability, cuda_unavailable_because
from mutoscope_engines.device.device import DeviceTensor
from mutoscope_engines.device.session import DevicePlaces, DeviceSession, Slot, allocate_tensor
from mutoscope_engines.errors import GraphError, MutoscopeError, OutOfMemoryError
from mutoscope_engines.session import Shapes, TensorSpec

from tests.engines.stub_driver.driver import KINDS, fail, live, stub, up, works

OUT_OF_MEMORY, ILLEGAL_ADDRESS, CAPTURE_UNSUPPORTED = 2, 700, 900  # of cuda.h
pytestmark = pytest.mark.gpu


def test_a_card_is_found_and_described() -> None:
    assert cuda_unavailable_because() is None
    assert compute_capability() == 89


def test_upload_copy_capture_replay_and_download(device: CudaDevice) -> None:
    works(device)


def test_a_driver_for_cuda_12_is_told_to_be_updated() -> None:
    stub.stub_set_version(12080)
    try:
        reason = cuda_unavailable_because() or ""
    finally:
        stub.stub_set_version(13000)
    assert "is for CUDA 12.8; update it to 580 or newer" in reason


@pytest.mark.parametrize("call", [1, 2])
def test_out_of_memory_is_translated_at_any_allocation(device: CudaDevice, call: int) -> None:
    fail("cuMemAllocFromPoolAsync", OUT_OF_MEMORY, call)
    with pytest.raises(OutOfMemoryError, match=r"allocating 12 bytes: CUDA_ERROR_OUT_OF_MEMORY.*lower memory_limit"):
        for _ in range(call):
            allocate_tensor(device, (3,), "float32")
    works(device)


def test_more_than_there_is_is_out_of_memory(device: CudaDevice) -> None:
    with pytest.raises(OutOfMemoryError, match="lower memory_limit"):
        device.allocate(2**40)
    works(device)


@pytest.mark.parametrize(
    ("function", "run", "doing"),
    [
        ("cuStreamCreateWithPriority", lambda device, tensor: CudaDevice(), "opening the GPU"),
        ("cuMemPoolCreate", lambda device, tensor: CudaDevice(), "opening the GPU"),
        ("cuMemcpyAsync", lambda device, tensor: up(device, 1), "copying"),
        ("cuMemcpyAsync", lambda device, tensor: tensor.numpy(), "copying"),
        ("cuStreamSynchronize", lambda device, tensor: tensor.numpy(), "copying"),
        ("cuEventCreate", lambda device, tensor: device.synchronize(), "running a graph"),
        ("cuEventRecord", lambda device, tensor: tensor.numpy(), "running a graph"),
        ("cuEventSynchronize", lambda device, tensor: tensor.numpy(), "running a graph"),
        ("cuStreamWaitEvent", lambda device, tensor: device.share(tensor, None), "sharing a tensor"),
        ("cuStreamBeginCapture", lambda device, tensor: device.capture(lambda: None), "capturing a CUDA graph"),
        ("cuStreamEndCapture", lambda device, tensor: device.capture(lambda: None), "capturing a CUDA graph"),
        ("cuGraphInstantiateWithParams", lambda device, tensor: device.capture(lambda: None), "capturing a CUDA graph"),
        ("cuGraphLaunch", lambda device, tensor: device.capture(lambda: None)(), "replaying a CUDA graph"),
    ],
)
def test_every_call_that_fails_is_told_in_our_words(
    device: CudaDevice, function: str, run: Callable[[CudaDevice, DeviceTensor], Any], doing: str
) -> None:
    tensor = up(device, 5)
    fail(function, ILLEGAL_ADDRESS)
    with pytest.raises(GraphError, match=f"while {doing}: .*check the GPU"):
        run(device, tensor)
    assert tensor.numpy().tolist() == [5]
    works(device)


class CopySession(DeviceSession):
    """y [n] is a copy of x [n]: run as it is, then captured, then replayed."""

    def __init__(self, device: CudaDevice) -> None:
        super().__init__(device, *((TensorSpec(name, "float32", ("n",)),) for name in "xy"))

    def open_slot(self, shapes: Shapes, places: DevicePlaces) -> Slot:
        return CopySlot(self, shapes, places)


class CopySlot(Slot):
    def __init__(self, session: DeviceSession, shapes: Shapes, places: DevicePlaces) -> None:
        super().__init__(session.device, session.inputs, shapes, places.inputs)
        self._device, self._runs = session.device, 0
        self._output = places.output(session.device, shapes["x"], "float32")
        self._replay: Callable[[], None] | None = None

    def _work(self) -> None:
        self._device.copy(self._output.address, self.inputs["x"].address, self._output.size)

    def launch(self) -> dict[str, DeviceTensor]:
        if self._runs and self._replay is None:
            self._replay = self._device.capture(self._work)
        (self._replay or self._work)()
        self._runs += 1
        return {"y": self._output}


def life_of_a_session(device: CudaDevice) -> None:
    """A session from its first run to its end, with two sizes."""
    with CopySession(device) as session:
        for size in (3, 5):
            with session.bind() as binding:
                for value in range(4):
                    values = np.full(size, value, np.float32)
                    assert binding.run({"x": values})["y"].numpy().tolist() == values.tolist()


@pytest.mark.parametrize(
    ("function", "code", "calls"),
    [
        ("cuMemAllocFromPoolAsync", OUT_OF_MEMORY, 4),
        ("cuMemcpyAsync", ILLEGAL_ADDRESS, 20),  # of each size four up, four down, one as it is, one captured
        ("cuStreamSynchronize", ILLEGAL_ADDRESS, 8),
        ("cuEventCreate", OUT_OF_MEMORY, 11),  # one a download, when the size changes, and two at the end
        ("cuEventRecord", ILLEGAL_ADDRESS, 11),
        ("cuEventSynchronize", ILLEGAL_ADDRESS, 11),
        ("cuStreamBeginCapture", ILLEGAL_ADDRESS, 2),
        ("cuStreamEndCapture", CAPTURE_UNSUPPORTED, 2),
        ("cuGraphInstantiateWithParams", OUT_OF_MEMORY, 2),
        ("cuGraphLaunch", ILLEGAL_ADDRESS, 6),
    ],
)
def test_a_fault_at_any_call_of_a_session_is_our_error_and_the_next_session_is_right(
    device: CudaDevice, function: str, code: int, calls: int
) -> None:
    for call in range(1, calls + 1):
        fail(function, code, call)
        with pytest.raises(MutoscopeError, match=r"lower memory_limit|check the GPU"):
            life_of_a_session(device)
        gc.collect()
        assert [live(what) for what in KINDS] == [0] * len(KINDS)
        life_of_a_session(device)
    fail(function, code, calls + 1)
    life_of_a_session(device)  # which is all that it calls
    stub.stub_fail(b"", 0, 0)


@pytest.mark.parametrize("call", [1, 2])
def test_closing_with_a_fault_pending_tells_it_and_frees_everything(device: CudaDevice, call: int) -> None:
    session = CopySession(device)
    session.run({"x": np.ones(3, np.float32)})
    with device.turn():
        device.scratch(1000)
    fail("cuEventSynchronize", ILLEGAL_ADDRESS, call)
    with pytest.raises(GraphError, match=r"while running a graph: .*check the GPU"):
        session.close()
    assert live("allocations") == 0
    session.close()  # which does nothing more
    life_of_a_session(device)


def test_other_threads_take_turns_while_one_that_closes_a_session_waits(device: CudaDevice) -> None:
    session = CopySession(device)
    had_turns: list[bool] = []

    def take_turn() -> None:
        with device.turn():
            pass

    class Watched:
        def __init__(self, done: Any) -> None:
            self._done = done

        def sync(self) -> None:
            other = threading.Thread(target=take_turn, daemon=True)
            other.start()
            other.join(10)
            had_turns.append(not other.is_alive())
            self._done.sync()

    class Stream:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def record(self, **options: Any) -> Watched:
            return Watched(self._stream.record(**options))

    device.queue = Stream(device.queue)
    session.close()
    assert had_turns == [True, True]


def test_what_invalidated_a_capture_is_the_error_and_the_stream_captures_no_more(device: CudaDevice) -> None:
    source, target = up(device, 1), up(device, 2)
    fail("cuMemcpyAsync", CAPTURE_UNSUPPORTED)
    with pytest.raises(GraphError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED") as caught:
        device.capture(lambda: device.copy(target.address, source.address, 4))
    assert live("captures") == 0
    works(device)  # while the error is still held
    del caught


def test_a_capture_that_a_library_invalidated_in_silence_is_refused(device: CudaDevice) -> None:
    source, target = up(device, 1), up(device, 2)

    def queue() -> None:
        fail("cuMemcpyAsync", CAPTURE_UNSUPPORTED)
        with pytest.raises(MutoscopeError):
            device.copy(target.address, source.address, 4)

    with pytest.raises(GraphError, match=r"has been invalidated.*check the GPU"):
        device.capture(queue)
    works(device)


def test_an_error_of_an_earlier_capture_that_goes_does_not_end_the_next(device: CudaDevice) -> None:
    source, target = up(device, 1), up(device, 2)
    held = []
    fail("cuMemcpyAsync", CAPTURE_UNSUPPORTED)
    try:
        device.capture(lambda: device.copy(target.address, source.address, 4))
    except GraphError as error:
        held.append(error)

    def queue() -> None:
        held.clear()
        gc.collect()
        device.copy(target.address, source.address, 4)

    device.capture(queue)()
    assert target.numpy().tolist() == [1]


def test_an_error_of_the_library_that_is_captured_passes_as_it_is(device: CudaDevice) -> None:
    def queue() -> None:
        raise ValueError("of the library")

    with pytest.raises(ValueError, match="of the library"):
        device.capture(queue)
    works(device)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["by the thread that captures", "by another thread"])
def test_memory_that_is_dropped_during_a_capture_is_freed_after_it(device: CudaDevice, elsewhere: bool) -> None:
    source, target = up(device, 4), up(device, 2)
    dropped = [up(device, 3)]

    def queue() -> None:
        if elsewhere:
            thread = threading.Thread(target=dropped.clear)
            thread.start()
            thread.join()
        else:
            dropped.clear()
            gc.collect()
        device.copy(target.address, source.address, 4)
        assert live("allocations") == 3

    device.capture(queue)()
    assert live("allocations") == 2
    assert target.numpy().tolist() == [4]


def test_memory_that_is_dropped_between_turns_is_freed_at_once(device: CudaDevice) -> None:
    tensor = up(device, 1)
    assert live("allocations") == 1
    del tensor
    assert live("allocations") == 0


def test_memory_that_another_thread_drops_just_before_a_turn_is_over_is_freed_at_once(device: CudaDevice) -> None:
    tensors = [up(device, 1)]
    lock = device.lock

    class Lock:
        acquire, __enter__ = lock.acquire, lock.__enter__

        def release(self, *_: object) -> None:
            thread = threading.Thread(target=tensors.clear)
            thread.start()
            thread.join()
            lock.release()

        __exit__ = release

    device.lock = Lock()  # type: ignore[assignment]
    with device.turn():
        pass
    assert live("allocations") == 0


def test_memory_that_was_dropped_in_a_turn_is_there_for_the_next_allocation_in_it(device: CudaDevice) -> None:
    with device.turn():
        tensor = up(device, 1)
        del tensor
        following = up(device, 2)
        assert live("allocations") == 1
    assert following.numpy().tolist() == [2]


def test_freed_memory_goes_back_to_the_driver_and_the_common_pool_stays_as_it_was(device: CudaDevice) -> None:
    before = device.free_bytes()
    tensor = allocate_tensor(device, (1000,), "float32")
    assert device.free_bytes() == before - 4000
    del tensor
    assert device.free_bytes() == before
    assert stub.stub_default_threshold() == 0


def test_a_wait_leaves_the_core_to_others(device: CudaDevice) -> None:
    device.synchronize()
    assert live("event flags") & 1  # CU_EVENT_BLOCKING_SYNC


def test_tensors_are_read_and_lent_by_dlpack_without_a_copy(device: CudaDevice) -> None:
    tensor = up(device, 1, 2)
    assert tensor.__dlpack_device__() == (2, 0)
    for stream in (None, 1, 2, -1):
        assert device.share(tensor, stream) is not None
    adopted = device.adopt(tensor)
    assert adopted.address == tensor.address and adopted.numpy().tolist() == [1, 2]
    capsule = tensor.__dlpack__(stream=-1)
    del tensor, adopted
    gc.collect()
    assert live("allocations") == 1  # the capsule keeps it
    del capsule


def test_a_stream_of_the_caller_is_used_and_left_to_the_caller(device: CudaDevice) -> None:
    streams, pools = live("streams"), live("pools")
    borrowed = CudaDevice(device.stream)
    assert borrowed.stream == device.stream
    works(borrowed)
    del borrowed
    gc.collect()
    assert (live("streams"), live("pools")) == (streams, pools)
    works(device)
