"""OpenVINO running the bundle's own graphs, as its Python package runs an ONNX file, behind the backends' interface.

Knows OpenVINO. Leaves its settings alone but for threads and the precision hint, so that it is what a user gets who
loads the graphs into it.
"""

from __future__ import annotations

from collections.abc import Hashable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.bundle.bundle import Bundle
from mutoscope.running.decode import HostTensor
from mutoscope_bench.implementation import Implementation, Work
from mutoscope_bench.measuring import Run
from mutoscope_engines.backends import BACKENDS
from mutoscope_engines.errors import GraphError
from mutoscope_engines.session import (
    Backend,
    Binding,
    Feeds,
    Session,
    SessionOptions,
    Tensor,
    TensorSpec,
    check_feeds,
)
from mutoscope_engines.telemetry import openvino

# A precision of this peer: the graph that it reads, and the hint that it is given.
_PRECISIONS = {"fp32": ("fp32", "f32"), "bf16 hint": ("fp32", "bf16"), "default hint": ("fp32", None),
               "int8": ("int8", None)}  # fmt: skip
_DEFAULT = "default hint"
_ROW_OF_HINT = {hint: precision for precision, (graph, hint) in _PRECISIONS.items() if graph == "fp32" and hint}
_BACKEND = "openvino-as-it-is"


class OpenVino(Implementation):
    """Our graphs in OpenVINO with its default settings, without what our backend changes."""

    name = "openvino"
    variants = tuple(_PRECISIONS)
    import_statement = "import mutoscope, tokenizers, av; from mutoscope_engines.telemetry import openvino; openvino()"

    def unavailable_because(self) -> str | None:
        return None if find_spec("openvino") else "needs openvino; run: pip install 'mutoscope[bench]'"

    def cannot(self, work: Work, precision: str) -> str | None:
        graph, _ = _PRECISIONS[precision]
        there = Bundle.open(work.bundle, verify=False).manifest.precisions()
        if graph not in there:
            return f"the bundle has no graphs in {graph}; it has {', '.join(there)}"
        if work.kind == "decode" and graph != "fp32":
            return "the VAE has no graphs in int8"
        if precision == _DEFAULT and (chosen := _default_hint()) in _ROW_OF_HINT:
            return f"without a hint it runs in {chosen} on this processor: see {_ROW_OF_HINT[chosen]}"
        return None

    def load(self, work: Work, precision: str) -> Run:
        from mutoscope_bench.ours import Ours

        graph, hint = _PRECISIONS[precision]
        _AsItIs.hint = hint
        BACKENDS[_BACKEND] = f"{__name__}:{_AsItIs.__name__}"
        return Ours(_BACKEND).load(work, graph)


def _default_hint() -> str:
    """The type that OpenVINO takes on this processor when it is told none, in the words of its hints."""
    ov = openvino()
    names = {ov.Type.f32: "f32", ov.Type.bf16: "bf16", ov.Type.f16: "f16"}
    return names.get(ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT"), "another type")


class _AsItIs(Backend):
    name = _BACKEND
    hint: str | None = None

    def unavailable_because(self) -> str | None:
        return None

    def version(self) -> str:
        return f"openvino {openvino().__version__}"

    def supports(self, precision: str) -> bool:
        return precision in ("fp32", "int8")

    def shares_by(self, options: SessionOptions) -> Hashable:
        return None

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return _Session(graph, options, self.hint)


class _Session(Session):
    def __init__(self, graph: Path, options: SessionOptions, hint: str | None) -> None:
        core = openvino().Core()
        config: dict[str, Any] = {"INFERENCE_NUM_THREADS": options.threads or 0, "PERFORMANCE_HINT": "LATENCY"}
        if hint is not None:
            config["INFERENCE_PRECISION_HINT"] = hint
        try:
            self.compiled = core.compile_model(core.read_model(graph), "CPU", config)
        except RuntimeError as error:
            raise GraphError(f"OpenVINO cannot load this graph: {str(error).splitlines()[0]}") from error
        self.inputs = tuple(map(_spec, self.compiled.inputs))
        self.outputs = tuple(map(_spec, self.compiled.outputs))

    def bind(self) -> Binding:
        return _Binding(self)

    def cancel(self) -> None:
        """OpenVINO's synchronous calls finish."""

    def close(self) -> None:
        self.compiled = None


class _Binding(Binding):
    def __init__(self, session: _Session) -> None:
        self._session = session
        self._request = session.compiled.create_infer_request()
        self._fed: dict[str, np.ndarray] = {}

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        check_feeds(self._session.inputs, feeds, {name: value.shape for name, value in self._fed.items()})
        for name, value in feeds.items():
            self._fed[name] = value.values if isinstance(value, HostTensor) else np.array(value, order="C")
        results = self._request.infer(self._fed, share_inputs=True)
        return {spec.name: HostTensor(np.array(results[spec.name])) for spec in self._session.outputs}

    def close(self) -> None:
        self._fed = {}


def _spec(port: Any) -> TensorSpec:
    sizes = port.get_partial_shape()
    shape = tuple(size.get_length() if size.is_static else f"{port.any_name}_{axis}" for axis, size in enumerate(sizes))
    return TensorSpec(port.any_name, str(np.dtype(port.element_type.to_dtype())), shape)
