"""What lies where on a device, what is copied when, and what is captured and replayed: on a device of host memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.chain import Chain
from mutoscope_engines.device.session import DeviceSession
from mutoscope_engines.errors import OutOfMemoryError, ShapeError
from mutoscope_engines.session import SessionOptions
from mutoscope_engines.tensorrt.session import TensorRtSession, TensorRtSettings

from tests.engines.fake_tensorrt import FakeTensorRt, engine_of
from tests.engines.host_device import HostDevice
from tests.engines.pretended import onnxruntime_on_host

BYTES = 4 * 3 * 4  # of one matrix


def matrix(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape or (3, 4), np.float32)


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def trt(device: HostDevice) -> FakeTensorRt:
    return FakeTensorRt(device)


@pytest.fixture
def session(device: HostDevice, trt: FakeTensorRt, sum_and_product: Path) -> DeviceSession:
    return TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())


def test_a_repeated_run_is_captured_once_and_replayed(session, device, trt) -> None:
    with session.bind() as binding:
        for seed in range(6):
            outputs = binding.run({"a": matrix(seed), "b": matrix(seed + 1)})
            np.testing.assert_allclose(outputs["sum"].numpy(), matrix(seed) + matrix(seed + 1), rtol=1e-6)
    assert (device.captures, device.replays) == (1, 5)
    assert trt.count("create_execution_context") == 1
    assert trt.count("set_tensor_address") == 4  # two inputs and two outputs, once each
    assert trt.count("execute_async_v3") == 2  # the first run, and the one that was captured


def test_what_runs_once_is_not_captured(session, device) -> None:
    session.run({"a": matrix(0), "b": matrix(1)})
    assert device.captures == 0


def test_a_later_binding_of_the_same_sizes_replays_what_was_captured(session, device, trt) -> None:
    for video in range(3):
        with session.bind() as binding:
            for seed in range(3):
                outputs = binding.run({"a": matrix(video), "b": matrix(seed)})
                np.testing.assert_allclose(outputs["product"].numpy(), matrix(video) * matrix(seed), rtol=1e-6)
    assert (device.captures, trt.count("create_execution_context")) == (1, 1)


def test_other_sizes_have_memory_and_a_graph_of_their_own(session, device, trt) -> None:
    for shape in ((3, 4), (5, 2), (5, 2)):
        with session.bind() as binding:
            for seed in range(3):
                outputs = binding.run({"a": matrix(seed, *shape), "b": matrix(9, *shape)})
                np.testing.assert_allclose(outputs["sum"].numpy(), matrix(seed, *shape) + matrix(9, *shape), rtol=1e-6)
    assert (device.captures, trt.count("create_execution_context")) == (2, 2)


def test_only_what_is_fed_is_copied_and_outputs_stay_on_the_device(session, device) -> None:
    with session.bind() as binding:
        outputs = binding.run({"a": matrix(0), "b": matrix(1)})
        assert device.log == [f"upload {BYTES}", f"upload {BYTES}"]
        device.log.clear()
        outputs = binding.run({"a": outputs["sum"]})
        assert device.log == [f"copy {BYTES}"]
        device.log.clear()
        binding.run({})["sum"].row(1).numpy()
        assert device.log == [f"download {BYTES // 3}"]


def test_activations_of_all_sessions_share_one_block(device, trt, sum_and_product) -> None:
    small, large = (TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings()) for _ in range(2))
    one, other = small.bind(), large.bind()
    for seed in range(3):
        one.run({"a": matrix(seed), "b": matrix(1)})
    before = device.used
    for seed in range(3):
        other.run({"a": matrix(seed, 50, 50), "b": matrix(1, 50, 50)})
    gc.collect()
    blocks = [call[1:] for call in trt.calls if call[0] == "set_device_memory"]
    assert len(blocks) == 2 and blocks[1][1] > blocks[0][1]
    grown = blocks[1][1] - blocks[0][1]
    assert device.used - before == grown + 4 * 4 * 50 * 50  # the smaller block is gone
    for seed in (7, 8):  # the first once more, over the block that there is now: as it is, then captured
        outputs = one.run({"a": matrix(seed)})
        np.testing.assert_allclose(outputs["sum"].numpy(), matrix(seed) + matrix(1), rtol=1e-6)
    assert device.captures == 3


def test_the_first_session_may_end_while_another_runs(device, trt, sum_and_product) -> None:
    first, following = (TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings()) for _ in range(2))
    before, after = first.bind(), following.bind()
    left = before.run({"a": matrix(0, 9, 9), "b": matrix(1, 9, 9)})["sum"]
    after.run({"a": left, "b": matrix(2, 9, 9)})
    before.close()
    first.close()
    del left
    gc.collect()
    for seed in range(3):
        sums = after.run({"b": matrix(seed, 9, 9)})["sum"].numpy()
        np.testing.assert_allclose(sums, matrix(0, 9, 9) + matrix(1, 9, 9) + matrix(seed, 9, 9), rtol=1e-5)


def test_closing_gives_all_memory_back(session, device) -> None:
    with session.bind() as binding:
        for _ in range(3):
            binding.run({"a": matrix(0), "b": matrix(1)})
    assert device.used > 0
    del binding
    session.close()
    session.close()
    gc.collect()
    assert device.used == 0


def test_memory_of_other_sizes_is_freed_before_more_is_taken(device, trt, sum_and_product) -> None:
    session = TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())
    with session.bind() as binding:
        binding.run({"a": matrix(0, 40, 40), "b": matrix(1, 40, 40)})
    of_one = device.used
    with session.bind() as binding:
        binding.run({"a": matrix(0, 40, 39), "b": matrix(1, 40, 39)})
    assert device.peak == of_one


def test_running_out_of_memory_leaves_a_session_that_runs_smaller_things(trt, sum_and_product) -> None:
    device = HostDevice(size=60_000)  # 40x40 has room for inputs and outputs, and none for scratch
    session = TensorRtSession(FakeTensorRt(device), engine_of(sum_and_product), device, TensorRtSettings())
    with session.bind() as binding:
        with pytest.raises(OutOfMemoryError):
            binding.run({"a": matrix(0, 40, 40), "b": matrix(1, 40, 40)})
        with pytest.raises(ShapeError, match="missing"):
            binding.run({"a": matrix(0)})  # what failed settled nothing
        sums = binding.run({"a": matrix(0), "b": matrix(1)})["sum"]
        np.testing.assert_allclose(sums.numpy(), matrix(0) + matrix(1), rtol=1e-6)


class DeviceArray:
    """An array of another library: it can be reached by DLPack alone."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __dlpack__(self, **keywords: Any) -> Any:
        return self._values.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._values.__dlpack_device__()
        return device


def test_arrays_of_other_libraries_go_in_without_passing_through_the_host(session, device) -> None:
    with session.bind() as binding:
        sums = binding.run({"a": DeviceArray(matrix(0)), "b": DeviceArray(matrix(1))})["sum"]
        assert device.log == [f"copy {BYTES}", f"copy {BYTES}", "synchronize"]  # their memory is theirs again
        np.testing.assert_allclose(sums.numpy(), matrix(0) + matrix(1), rtol=1e-6)


def test_outputs_go_out_to_other_libraries_as_they_lie(session, device) -> None:
    with session.bind() as binding:
        sums = binding.run({"a": matrix(0), "b": matrix(1)})["sum"]
        device.log.clear()
        theirs = np.from_dlpack(sums)
        np.testing.assert_allclose(theirs, matrix(0) + matrix(1), rtol=1e-6)
        facts = sums.__cuda_array_interface__
        assert theirs.ctypes.data == facts["data"][0] == sums.address and device.log == []
        assert (facts["shape"], facts["typestr"], facts["stream"], facts["version"]) == ((3, 4), "<f4", 7, 3)


def test_onnxruntime_keeps_its_outputs_where_the_first_run_put_them(sum_and_product, monkeypatch) -> None:
    backend = onnxruntime_on_host(monkeypatch)
    with backend.open(sum_and_product, SessionOptions(threads=1)) as session, session.bind() as binding:
        places = {binding.run({"a": matrix(seed), "b": matrix(1)})["sum"].address for seed in range(4)}
    assert len(places) == 1


@pytest.fixture
def chain(device: HostDevice, trt: FakeTensorRt, chained: list[Path]) -> Chain:
    return Chain([TensorRtSession(trt, engine_of(part), device, TensorRtSettings()) for part in chained])


def test_parts_read_where_others_wrote_and_take_turns_in_the_memory_between_them(chain, device, trt) -> None:
    size, before = 4 * 1000, device.used
    with chain.bind() as binding:
        for seed in range(4):
            a, b, x = (matrix(3 * seed + number, 1000) for number in range(3))
            outputs = binding.run({"a": a, "b": b, "x": x})
            np.testing.assert_allclose(outputs["y"].numpy(), 2 * (a + x * x) * b - a, rtol=1e-5, atol=1e-5)
        # a (for two parts), b and x; once and h1, where h2 and h3 lie later; y; and what a run takes besides.
        assert device.used - before - device.scratch(0)[0].array.nbytes == 7 * size
    assert not any(line.startswith("copy") for line in device.log)
    assert trt.count("create_execution_context") == len(chain.parts)
    assert device.captures == len(chain.parts)


def test_a_later_binding_of_a_chain_has_the_memory_of_the_one_before(chain, device, trt) -> None:
    for seed in range(3):
        with chain.bind() as one:
            assert one.run({name: matrix(seed, 50) for name in "abx"})["y"].shape == (50,)
    assert trt.count("create_execution_context") == len(chain.parts)
    with chain.bind() as one, chain.bind() as other:
        for binding, seed in ((one, 1), (other, 2), (one, 3), (other, 4)):
            a, b, x = (matrix(seed + number, 50) for number in range(3))
            y = binding.run({"a": a, "b": b, "x": x})["y"].numpy()
            np.testing.assert_allclose(y, 2 * (a + x * x) * b - a, rtol=1e-5, atol=1e-5)


def test_a_part_alone_does_not_run_in_memory_that_a_chain_lent_it(chain, trt) -> None:
    with chain.bind() as binding:
        binding.run({name: matrix(1, 50) for name in "abx"})
    h1, b = matrix(2, 50), matrix(3, 50)
    before = trt.count("create_execution_context")
    np.testing.assert_allclose(chain.parts[2].run({"h1": h1, "b": b})["h2"].numpy(), h1 * b, rtol=1e-6)
    assert trt.count("create_execution_context") == before + 1
