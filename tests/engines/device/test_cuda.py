"""The GPU itself, where there is one, and what is said where there is none."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.device import cuda as cuda_device
from mutoscope_engines.device.cuda import CudaDevice, cuda_unavailable_because
from mutoscope_engines.device.session import allocate_tensor
from mutoscope_engines.errors import BackendUnavailableError, OutOfMemoryError


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    """Pretends that cuda-core is there, and a driver that finds as many GPUs."""

    def pretend(gpus: int | None, initialised: bool = True, version: int = 13000) -> None:
        def load(name: str) -> Any:
            if gpus is None:
                raise OSError(f"{name}: cannot open shared object file")

            def gives(value: int) -> Any:
                def function(out: Any) -> int:
                    out.contents.value = value
                    return 0

                return function

            return SimpleNamespace(
                cuInit=lambda flags: 0 if initialised else 100,
                cuDeviceGetCount=gives(gpus),
                cuDriverGetVersion=gives(version),
            )

        monkeypatch.setattr(cuda_device, "find_spec", lambda name: object())
        monkeypatch.setattr(ctypes, "CDLL", load)

    return pretend


def test_a_gpu_with_its_driver_is_no_reason_to_refuse(driver) -> None:
    driver(1)
    assert cuda_unavailable_because() is None


@pytest.mark.parametrize(
    ("gpus", "initialised", "reason"),
    [
        (None, True, "no NVIDIA driver; install one"),
        (0, True, "finds no GPU; see what `nvidia-smi` says"),
        (1, False, "finds no GPU"),
    ],
)
def test_a_missing_gpu_is_told_from_a_missing_driver(driver, gpus, initialised, reason) -> None:
    driver(gpus, initialised)
    assert reason in (cuda_unavailable_because() or "")


def test_a_driver_that_is_too_old_is_told_to_be_updated(driver) -> None:
    driver(1, version=12040)
    assert "is for CUDA 12.4; update it to 580 or newer" in (cuda_unavailable_because() or "")


def test_without_cuda_core_it_is_said_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setattr(cuda_device, "find_spec", lambda name: None)
    assert "pip install 'cuda-core" in (cuda_unavailable_because() or "")


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_default_stream_is_refused_before_the_gpu_is_opened(stream: int) -> None:
    with pytest.raises(BackendUnavailableError, match=r"default stream.*give one of your own"):
        CudaDevice(stream)


def test_every_name_that_is_called_is_there_in_cuda_core() -> None:
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    from cuda.core.graph import Graph, GraphBuilder
    from cuda.core.utils import StridedMemoryView

    called = {
        core.Device: ("set_current", "create_stream", "device_id", "compute_capability"),
        core.Stream: ("from_handle", "handle", "record", "wait", "sync", "create_graph_builder"),
        core.Event: ("sync",),
        core.DeviceMemoryResource: ("allocate", "attributes"),
        core.DeviceMemoryResourceOptions: ("max_size",),
        core.EventOptions: ("blocking_sync",),
        core.Buffer: ("from_handle", "copy_from", "handle"),
        GraphBuilder: ("begin_building", "end_building", "complete", "close"),
        Graph: ("launch",),
        StridedMemoryView: ("from_any_interface", "from_buffer", "ptr", "shape", "strides", "dtype", "device_id"),
    }
    missing = [f"{kind.__name__}.{name}" for kind, names in called.items() for name in names if not hasattr(kind, name)]
    assert missing == []


@pytest.fixture
def gpu() -> CudaDevice:
    if reason := cuda_unavailable_because():
        pytest.skip(reason)
    return CudaDevice()


@pytest.mark.gpu
def test_what_goes_up_comes_down(gpu: CudaDevice) -> None:
    values = np.arange(1000, dtype=np.float32).reshape(10, 100)
    tensor, other = (allocate_tensor(gpu, (10, 100), "float32") for _ in range(2))
    gpu.upload(tensor.address, values)
    gpu.copy(other.address, tensor.address, tensor.size)
    np.testing.assert_array_equal(other.numpy(), values)
    np.testing.assert_array_equal(other.row(3).numpy(), values[3])


@pytest.mark.gpu
def test_captured_work_is_done_when_it_is_replayed(gpu: CudaDevice) -> None:
    source, target = (allocate_tensor(gpu, (4,), "float32") for _ in range(2))
    gpu.upload(target.address, np.zeros(4, np.float32))
    replay = gpu.capture(lambda: gpu.copy(target.address, source.address, source.size))
    for value in (1, 2):
        gpu.upload(source.address, np.full(4, value, np.float32))
        assert target.numpy().tolist() == [value - 1] * 4
        replay()
        assert target.numpy().tolist() == [value] * 4


@pytest.mark.gpu
def test_more_memory_than_there_is_is_refused_in_words(gpu: CudaDevice) -> None:
    with pytest.raises(OutOfMemoryError, match="memory_limit"):
        gpu.allocate(2**50)
    assert gpu.free_bytes() > 0


@pytest.mark.gpu
def test_torch_reads_and_is_read_without_a_copy(gpu: CudaDevice) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    tensor = allocate_tensor(gpu, (2, 3), "float32")
    gpu.upload(tensor.address, np.ones((2, 3), np.float32))
    for theirs in (torch.from_dlpack(tensor), torch.as_tensor(tensor, device="cuda")):
        assert theirs.data_ptr() == tensor.address and theirs.sum().item() == 6
    theirs = torch.full((2, 3), 5.0, device="cuda")
    adopted = gpu.adopt(theirs)
    assert adopted.address == theirs.data_ptr() and adopted.numpy().tolist() == [[5] * 3] * 2
