"""The backends of GPUs on host memory: all of their code runs, but for the library that a GPU is needed for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mutoscope_engines import onnxruntime_cuda
from mutoscope_engines.session import Backend, Session, SessionOptions

from tests.engines.host_device import HostDevice


class OnnxRuntimeOnHost(onnxruntime_cuda.OnnxRuntimeCuda):
    """ONNX Runtime's CPU provider, which takes IO binding by addresses as its CUDA provider does."""

    def __init__(self) -> None:
        self.device = HostDevice()

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return onnxruntime_cuda.OnnxRuntimeCudaSession(graph, self.device, options)


def onnxruntime_on_host(monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(onnxruntime_cuda, "providers", lambda device, options: ["CPUExecutionProvider"])
    return OnnxRuntimeOnHost()


PRETENDED: dict[str, Callable[[pytest.MonkeyPatch], Backend]] = {
    "onnxruntime-cuda on host memory": onnxruntime_on_host,
}
