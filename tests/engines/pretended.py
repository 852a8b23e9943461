"""Backends that no machine lacks: those of GPUs on host memory, where all of their code runs but for the library that
needs a GPU, and the public fake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mutoscope_engines.errors import GraphError
from mutoscope_engines.onnxruntime import cuda as onnxruntime_cuda
from mutoscope_engines.session import Backend, EngineWanted, Figures, Session, SessionOptions
from mutoscope_engines.tensorrt.backend import TensorRtBackend
from mutoscope_engines.tensorrt.session import EngineUse, TensorRtSession, TensorRtSettings
from mutoscope_engines.testing import FakeBackend, Function
from onnx.reference import ReferenceEvaluator

from tests.engines.fake_tensorrt import FakeTensorRt, engine_of
from tests.engines.host_device import HostDevice


def onnxruntime_on_host(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """ONNX Runtime's CPU provider, which takes IO binding by addresses as its CUDA provider does."""
    monkeypatch.setattr(onnxruntime_cuda, "providers", lambda device, options: ["CPUExecutionProvider"])
    return onnxruntime_cuda.OnnxRuntimeCuda(HostDevice())


class TensorRtOnHost(TensorRtBackend):
    """The session over a library that only pretends, and engines that only name their graph."""

    def __init__(self) -> None:
        super().__init__("tensorrt-rtx")
        self.on_host = HostDevice()
        self.trt = FakeTensorRt(self.on_host)
        self.memory: int | None = None  # bytes that it says graphs may take; all that is free if `None`

    def unavailable_because(self) -> None:
        return None

    def version(self) -> str:
        return "tensorrt-rtx over a fake"

    def supports(self, precision: str) -> bool:
        return True

    def memory_bytes(self, options: SessionOptions) -> int:
        return self.on_host.free_bytes() if self.memory is None else self.memory

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        return Figures(graph.stat().st_size)

    def shares_by(self, options: SessionOptions) -> None:
        return None

    def open(self, graph: Path, options: SessionOptions) -> Session:
        use = EngineUse(captures=options.cuda_graphs)
        return TensorRtSession(self.trt, engine_of(graph), self.on_host, TensorRtSettings(), use=use)


class FakeOfOnnx(FakeBackend):
    """The public fake, whose functions are what ONNX's reference implementation computes of the graphs."""

    def __init__(self) -> None:
        super().__init__({})
        self.evaluators: dict[Path, ReferenceEvaluator] = {}

    def function_of(self, graph: Path) -> Function:
        if graph not in self.evaluators:
            try:
                self.evaluators[graph] = ReferenceEvaluator(str(graph))
            except Exception as error:  # of no common class
                raise GraphError(f"{graph.parent.name}/{graph.name}: {error}") from error
        evaluator = self.evaluators[graph]
        return lambda **feeds: dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


PRETENDED: dict[str, Callable[[pytest.MonkeyPatch], Backend]] = {
    "onnxruntime-cuda on host memory": onnxruntime_on_host,
    "tensorrt-rtx over a fake": lambda monkeypatch: TensorRtOnHost(),
    "the public fake": lambda monkeypatch: FakeOfOnnx(),
}
