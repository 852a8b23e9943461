"""The parts with small graphs, over a device of host memory and a library that pretends; and the graphs themselves."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from mutoscope_bench.gpu_check import sessions
from mutoscope_bench.gpu_check.part import NotRunError
from mutoscope_engines.tensorrt.library import LIBRARIES
from onnx import TensorProto

from benchmarks import gpu_check_graphs
from tests.engines.fake_tensorrt import FakeTensorRt, engine_of
from tests.engines.host_device import HostDevice

RTX = {"backend": "tensorrt-rtx"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """The device of everything that a part opens, and pretended engines on it."""
    device = HostDevice()
    trt = FakeTensorRt(device)

    def compile_in_process(graph: Path, destination: Path, *given: Any) -> Any:
        destination.write_bytes(engine_of(graph))
        return SimpleNamespace(build_s=0.5)

    library = SimpleNamespace(module=trt, identity=LIBRARIES["tensorrt-rtx"].identity)
    monkeypatch.setattr(sessions, "CudaDevice", lambda: device)
    monkeypatch.setattr(sessions, "compute_capability", lambda: 89)
    monkeypatch.setattr(sessions, "refuse_unavailable", lambda backend: None)
    monkeypatch.setattr(sessions, "LIBRARIES", {"tensorrt-rtx": library})
    monkeypatch.setattr(sessions, "compile_in_process", compile_in_process)
    return device


@pytest.fixture
def small_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, which the CPU has, and few tokens."""
    model = gpu_check_graphs.attention_in(TensorProto.FLOAT)
    for precision in ("bf16", "fp8"):
        (tmp_path / f"attention-{precision}.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(sessions, "GRAPHS", tmp_path)
    monkeypatch.setattr(sessions, "ATTENTION", {name: (1, 8, shape[2]) for name, shape in sessions.ATTENTION.items()})


def test_the_graphs_of_the_package_are_those_of_their_script() -> None:
    made = gpu_check_graphs.graphs()
    assert {path.name for path in sessions.GRAPHS.iterdir()} == set(made)
    for name, model in made.items():
        assert onnx.load(sessions.GRAPHS / name) == model
        onnx.checker.check_model(model)


def test_a_session_runs_is_captured_and_replays(device: HostDevice) -> None:
    facts = sessions.session(RTX)
    assert facts["built_s"] == {"first": 0.5} and facts["replays_are_the_same"] and facts["error"] < 1e-6
    assert (device.captures, device.replays) == (1, 5)


def test_a_chain_reads_where_the_first_wrote(device: HostDevice) -> None:
    assert sessions.chain(RTX)["error"] < 1e-6
    assert device.captures == 2 and not any(line.startswith("copy") for line in device.log)


@pytest.mark.parametrize("part", [sessions.session, sessions.chain])
def test_a_wrong_result_fails(device: HostDevice, monkeypatch, part: Callable[[dict[str, Any]], Any]) -> None:
    download = device.download

    def spoil(address: int, values: Any) -> None:
        download(address, values)
        values[0, 0] += 100

    monkeypatch.setattr(device, "download", spoil)
    with pytest.raises(ValueError, match="away from what NumPy computes"):
        part(RTX)


def test_values_that_are_no_numbers_fail(device: HostDevice, monkeypatch) -> None:
    def spoil(address: int, values: Any) -> None:
        ctypes.memset(values.ctypes.data, 0xFF, values.nbytes)

    monkeypatch.setattr(device, "download", spoil)
    with pytest.raises(ValueError, match="nan away"):
        sessions.session(RTX)


def test_kept_kernels_are_stored_and_timed(device: HostDevice, small_attention: None) -> None:
    facts = sessions.kernels(RTX)
    assert facts["cold_s"] > 0 and facts["warm_s"] > 0
    assert facts["kept_bytes"] == 64 + len(b"compiled kernels")  # with its signature


def test_an_attention_is_timed_in_each_precision_that_the_gpu_has(
    device: HostDevice, small_attention: None, monkeypatch
) -> None:
    facts = sessions.attention(RTX)
    assert facts["bf16_ms"] > 0 and facts["fp8_ms"] > 0 and facts["fp8_error"] == 0
    monkeypatch.setattr(sessions, "compute_capability", lambda: 86)
    facts = sessions.attention(RTX)
    assert facts["bf16_ms"] > 0 and facts["fp8_not_run"] == "this GPU has none" and "fp8_error" not in facts


def test_a_gpu_without_bfloat16_keeps_no_kernels_of_it(device: HostDevice, monkeypatch) -> None:
    monkeypatch.setattr(sessions, "compute_capability", lambda: 75)
    with pytest.raises(NotRunError, match="no bfloat16"):
        sessions.kernels(RTX)


def test_a_backend_that_cannot_run_here_says_why() -> None:
    with pytest.raises(NotRunError, match="tensorrt is not installed"):
        sessions.session({"backend": "tensorrt"})


def test_onnxruntime_runs_the_graph_as_it_is(device: HostDevice, monkeypatch) -> None:
    from mutoscope_engines.onnxruntime import cuda as onnxruntime_cuda

    monkeypatch.setattr(onnxruntime_cuda, "providers", lambda device, options: ["CPUExecutionProvider"])
    facts = sessions.session({"backend": "onnxruntime-cuda"})
    assert facts["error"] < 1e-6 and facts["built_s"] == {} and device.sessions == 0
