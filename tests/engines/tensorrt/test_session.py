"""What the session asks of the library, and what it refuses. What the library itself does is pretended."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from mutoscope_engines.errors import BackendUnavailableError, EngineError, GraphError, OutOfMemoryError, ShapeError
from mutoscope_engines.tensorrt import session as tensorrt_session
from mutoscope_engines.tensorrt.session import EngineUse, TensorRtSession, TensorRtSettings

from tests.engines import fake_tensorrt
from tests.engines.fake_tensorrt import FakeTensorRt, engine_of
from tests.engines.host_device import HostDevice

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="what is pretended of it is held against it")


def test_what_the_library_does_not_read_as_an_engine_is_refused_with_its_reason() -> None:
    device = HostDevice()
    with pytest.raises(EngineError, match=r"magic tag does not match.*build it again"):
        TensorRtSession(FakeTensorRt(device), b"no engine", device, TensorRtSettings())


def test_sizes_beyond_the_profile_are_refused_before_memory_is_taken(sum_and_product) -> None:
    device = HostDevice()
    session = TensorRtSession(FakeTensorRt(device), engine_of(sum_and_product), device, TensorRtSettings())
    a = np.zeros((2, 4000), np.float32)
    with pytest.raises(
        ShapeError, match=r"\(2, 4000\); the engine was built for \(1, 1\) to \(2048, 2048\).*build one"
    ):
        session.run({"a": a, "b": a})
    assert device.used == 0


def test_what_cannot_be_captured_says_how_to_run_it(sum_and_product) -> None:
    device = HostDevice()
    trt = FakeTensorRt(device)
    trt.capturable = False
    feeds = dict.fromkeys("ab", np.ones((2, 2), np.float32))
    session = TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())
    with session.bind() as binding:
        binding.run(feeds)
        with pytest.raises(BackendUnavailableError, match="turn cuda_graphs off"):
            binding.run(feeds)
    session = TensorRtSession(
        trt, engine_of(sum_and_product), device, TensorRtSettings(), use=EngineUse(captures=False)
    )
    with session.bind() as binding:
        for _ in range(3):
            np.testing.assert_array_equal(binding.run(feeds)["sum"].numpy(), np.full((2, 2), 2))
    assert device.captures == 0


def names_of(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")} - {"run"}


@pytest.mark.parametrize(
    ("pretended", "real"),
    [
        (fake_tensorrt.FakeRuntime, "Runtime"),
        (fake_tensorrt.FakeEngine, "ICudaEngine"),
        (fake_tensorrt.FakeConfig, "IRuntimeConfig"),
        (fake_tensorrt.FakeContext, "IExecutionContext"),
    ],
)
def test_what_is_pretended_is_there_in_the_library(pretended: type, real: str) -> None:
    assert names_of(pretended) <= set(dir(getattr(tensorrt_rtx, real)))


def test_the_values_that_are_pretended_are_there_in_the_library() -> None:
    for name in ("TensorIOMode", "ExecutionContextAllocationStrategy", "CudaGraphStrategy"):
        members = vars(getattr(FakeTensorRt, name))
        assert set(members) <= set(getattr(tensorrt_rtx, name).__members__)
    strategies = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.__members__
    assert set(vars(FakeTensorRt.DynamicShapesKernelSpecializationStrategy)) == set(strategies)
    assert {"ERROR", "INTERNAL_ERROR"} <= set(dir(tensorrt_rtx.ILogger))
    assert {"serialize", "deserialize"} <= set(dir(tensorrt_rtx.IRuntimeCache))
    assert set(tensorrt_session.DTYPES) <= set(tensorrt_rtx.DataType.__members__)
    settings = {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"}
    assert settings <= set(dir(tensorrt_rtx.IRuntimeConfig))
    streaming = {"weight_streaming_budget_v2", "streamable_weights_size"}
    assert streaming <= set(dir(tensorrt_rtx.ICudaEngine))


OLD_DRIVER = "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
OUT_OF_MEMORY = "[executionContext.cpp::enqueueV3] Error Code 2: OutOfMemory (Requested size was 1024 bytes.)"


@pytest.mark.parametrize(
    ("call", "said", "error", "told"),
    [
        ("deserialize_cuda_engine", "version tag does not match", EngineError, "does not load: version tag.*build it"),
        ("deserialize_cuda_engine", OLD_DRIVER, EngineError, "cudaError 35.*; update the NVIDIA driver"),
        ("deserialize_cuda_engine", OUT_OF_MEMORY, OutOfMemoryError, "not load: .*OutOfMemory.*lower memory_limit"),
        (
            "create_execution_context",
            "cannot",
            OutOfMemoryError,
            "it could not reserve memory to run: cannot; lower memory_limit",
        ),
        ("set_input_shape", "not in profile", ShapeError, r"does not take 'a' in shape \(2, 2\): not in profile"),
        ("set_tensor_address", "misaligned", GraphError, "does not take the address of 'a': misaligned"),
        ("update_device_memory_size_for_shapes", "unresolved", GraphError, "what memory it needs .*: unresolved"),
        ("execute_async_v3", "myelin failed", GraphError, "did not run: myelin failed; build it again"),
        ("execute_async_v3", "Cuda Runtime (out of memory)", OutOfMemoryError, "did not run: .*lower memory_limit"),
    ],
)
def test_what_the_library_refuses_is_told_with_its_reason_in_every_session(
    sum_and_product, call: str, said: str, error: type[Exception], told: str
) -> None:
    for _ in range(2):  # the library goes on to use the logger of the first
        device = HostDevice()
        trt = FakeTensorRt(device)
        trt.refused[call] = said
        with pytest.raises(error, match=told):
            TensorRtSession(
                trt, engine_of(sum_and_product), device, TensorRtSettings(), use=EngineUse(activation_bytes=1)
            ).run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))  # fmt: skip


def test_a_reason_is_told_once_and_not_again_for_another_failure(sum_and_product) -> None:
    device = HostDevice()
    trt = FakeTensorRt(device)
    trt.refused["deserialize_cuda_engine"] = "of the first"
    with pytest.raises(EngineError, match="of the first"):
        TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())
    trt.refused["deserialize_cuda_engine"] = ""
    with pytest.raises(EngineError, match="the library does not say why"):
        TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())


def test_a_session_that_is_dropped_gives_its_memory_back_at_once(sum_and_product) -> None:
    device = HostDevice()
    session = TensorRtSession(FakeTensorRt(device), engine_of(sum_and_product), device, TensorRtSettings())
    with session.bind() as binding:
        binding.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))
    gc.disable()
    try:
        del session, binding
        assert device.used == device.scratch(0)[0].array.nbytes
    finally:
        gc.enable()


def test_an_engine_without_activations_may_need_no_memory(sum_and_product) -> None:
    device = HostDevice()
    trt = FakeTensorRt(device)
    session = TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())
    trt.refused["update_device_memory_size_for_shapes"] = "nothing"
    session.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))


class Kernels:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []

    def load(self) -> None:
        return None

    def store(self, compiled: bytes) -> None:
        self.stored.append(compiled)


@pytest.mark.parametrize("refused", [False, True])
def test_kernels_are_stored_from_any_thread_unless_the_library_took_no_cache(sum_and_product, refused: bool) -> None:
    device, kernels = HostDevice(), Kernels()
    trt = FakeTensorRt(device)
    if refused:
        trt.refused["set_runtime_cache"] = "another GPU"
    session = TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings(), kernels)
    session.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join()
    assert kernels.stored == ([] if refused else [b"compiled kernels"])


@pytest.mark.parametrize("kernels", [None, Kernels()])
def test_closing_after_a_fault_of_the_gpu_tells_it_and_frees_everything(sum_and_product, kernels) -> None:
    device = HostDevice()
    session = TensorRtSession(FakeTensorRt(device), engine_of(sum_and_product), device, TensorRtSettings(), kernels)
    session.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))
    device.fault = "an illegal address"
    with pytest.raises(GraphError, match="an illegal address"):
        session.close()
    session.close()  # which is done
    gc.collect()
    assert (session.engine, device.sessions, device.used) == (None, 0, 0)


def test_after_the_memory_for_activations_grew_an_engine_runs_as_it_is_before_it_is_captured(sum_and_product) -> None:
    device = HostDevice()
    trt = FakeTensorRt(device)
    session = TensorRtSession(trt, engine_of(sum_and_product), device, TensorRtSettings())
    feeds = dict.fromkeys("ab", np.ones((2, 2), np.float32))
    with session.bind() as binding:
        for _ in range(2):
            binding.run(feeds)
        with device.turn():
            device.scratch(10_000)
        for _ in range(3):  # the pretended library insists on it
            np.testing.assert_array_equal(binding.run(feeds)["sum"].numpy(), np.full((2, 2), 2))
    assert device.captures == 2
