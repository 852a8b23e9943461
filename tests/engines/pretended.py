"""The backends of GPUs on host memory: all of their code runs, but for the library that a GPU is needed for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mutoscope_engines.onnxruntime import cuda as onnxruntime_cuda
from mutoscope_engines.session import Backend, EngineWanted, Figures, Session, SessionOptions
from mutoscope_engines.tensorrt.backend import TensorRtBackend
from mutoscope_engines.tensorrt.session import TensorRtSession, TensorRtSettings

from tests.engines.fake_tensorrt import FakeTensorRt, engine_of
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


class TensorRtOnHost(TensorRtBackend):
    """The session over a library that only pretends, and engines that only name their graph."""

    def __init__(self) -> None:
        super().__init__("tensorrt-rtx")
        self.on_host = HostDevice()
        self.trt = FakeTensorRt(self.on_host)

    def unavailable_because(self) -> None:
        return None

    def version(self) -> str:
        return "tensorrt-rtx over a fake"

    def supports(self, precision: str) -> bool:
        return True

    def memory_bytes(self, options: SessionOptions) -> int:
        return self.on_host.free_bytes()

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        return Figures(graph.stat().st_size)

    def shares_by(self, options: SessionOptions) -> None:
        return None

    def open(self, graph: Path, options: SessionOptions) -> Session:
        captures = options.cuda_graphs
        return TensorRtSession(self.trt, engine_of(graph), self.on_host, TensorRtSettings(), captures=captures)


PRETENDED: dict[str, Callable[[pytest.MonkeyPatch], Backend]] = {
    "onnxruntime-cuda on host memory": onnxruntime_on_host,
    "tensorrt-rtx over a fake": lambda monkeypatch: TensorRtOnHost(),
}
