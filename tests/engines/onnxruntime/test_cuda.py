"""ONNX Runtime's CUDA provider, pretended: what it does in silence, and what it must be asked."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from mutoscope_engines.errors import BackendUnavailableError, GraphError, OutOfMemoryError
from mutoscope_engines.onnxruntime import cuda as onnxruntime_cuda
from mutoscope_engines.session import SessionOptions

from tests.engines.host_device import HostDevice
from tests.engines.pretended import onnxruntime_on_host


class WithoutItsLibraries(onnxruntime.InferenceSession):
    """As onnxruntime-gpu where cuDNN is missing: the provider is left out, or the CPU is taken with words on standard
    output, unless that is refused."""

    def __init__(self, graph: Path, settings: Any, *, providers: list[Any], enable_fallback: int = 1, **rest: Any):
        if enable_fallback:
            print("*************** EP Error ***************")
        super().__init__(graph, settings, providers=["CPUExecutionProvider"], **rest)


def test_a_provider_that_does_not_load_is_refused_and_not_replaced_by_the_cpu(
    sum_and_product, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", WithoutItsLibraries)
    advice = r"CUDAExecutionProvider.*pip install 'onnxruntime-gpu\[cuda,cudnn\]"
    with pytest.raises(BackendUnavailableError, match=advice):
        onnxruntime_cuda.OnnxRuntimeCudaSession(sum_and_product, HostDevice(), SessionOptions())
    assert capsys.readouterr().out == ""


def test_the_libraries_of_pip_are_loaded_before_the_first_session_and_standard_output_stays_empty(
    sum_and_product, monkeypatch, capsys
) -> None:
    calls: list[str] = []

    def preload_dlls() -> None:
        calls.append("preload")
        print("Failed to load libcudnn.so.9")

    opened = onnxruntime_cuda.open_session
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime_cuda, "open_session", lambda *given: calls.append("open") or opened(*given))
    onnxruntime_cuda.preload_libraries.cache_clear()
    backend = onnxruntime_on_host(monkeypatch)
    for _ in range(2):
        backend.open(sum_and_product, SessionOptions()).close()
    assert calls == ["preload", "open", "open"]
    assert capsys.readouterr() == ("", "Failed to load libcudnn.so.9\n")


class Watched:
    """A session of the library that notes which thread runs it, and fails when it is told to."""

    def __init__(self, library: Any) -> None:
        self._library, self.threads, self.error = library, [], ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.threads.append(threading.get_ident())
        if self.error:
            raise RuntimeError(self.error)
        self._library.run_with_iobinding(binding, options)


def test_it_says_what_it_runs_here_and_how(sum_and_product) -> None:
    device = HostDevice(size=5000)
    backend = onnxruntime_cuda.OnnxRuntimeCuda(device)
    assert [each for each in ("fp32", "fp16", "bf16", "fp8", "int8") if backend.supports(each)] == [
        "fp32",
        "fp16",
        "bf16",
    ]
    assert backend.preferred_precision == "bf16" and backend.on_device
    assert backend.memory_bytes(SessionOptions()) == 5000
    assert backend.settings(SessionOptions(cuda_graphs=False)) == {"cuda_graph": "off"}
    assert "second run" in backend.settings(SessionOptions())["cuda_graph"]
    assert backend.version() == f"onnxruntime-gpu {onnxruntime.__version__}"


def test_the_build_for_cpus_is_refused_with_the_command_that_replaces_it(monkeypatch) -> None:
    backend = onnxruntime_cuda.OnnxRuntimeCuda()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "is the build for CPUs" in (backend.unavailable_because() or "")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    monkeypatch.setattr(onnxruntime_cuda, "cuda_unavailable_because", lambda: "there is no NVIDIA driver; install one")
    assert backend.unavailable_because() == "there is no NVIDIA driver; install one"


@pytest.fixture
def session(sum_and_product, monkeypatch):
    with onnxruntime_on_host(monkeypatch).open(sum_and_product, SessionOptions()) as session:
        session.library = Watched(session.library)
        yield session


def test_one_thread_runs_all_graphs_of_a_session_whoever_asks(session) -> None:
    feeds = dict.fromkeys("ab", np.ones((2, 2), np.float32))
    with session.bind() as binding:
        for _ in range(3):
            thread = threading.Thread(target=binding.run, args=[feeds])
            thread.start()
            thread.join()
        np.testing.assert_array_equal(binding.run(feeds)["sum"].numpy(), np.full((2, 2), 2))
    assert len(session.library.threads) == 4 and len(set(session.library.threads)) == 1
    assert session.library.threads[0] != threading.get_ident()


@pytest.mark.parametrize(
    "message",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1024",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_a_lack_of_memory_is_told_as_such_by_whichever_library(session, message: str) -> None:
    session.library.error = message
    with pytest.raises(OutOfMemoryError, match="lower memory_limit, or close other programs"):
        session.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))


LATE = """
import atexit, sys, threading
from pathlib import Path
import numpy as np
import pytest
from mutoscope_engines.session import SessionOptions
from tests.engines.pretended import onnxruntime_on_host

backend = onnxruntime_on_host(pytest.MonkeyPatch())
opened = backend.open(Path(sys.argv[1]), SessionOptions(threads=1))

def run():
    if sys.argv[2] == "thread":
        threading.main_thread().join()
    with backend.open(Path(sys.argv[1]), SessionOptions(threads=1)) as session:
        for one in (opened, session):
            for _ in range(3):
                print(one.run(dict.fromkeys("ab", np.ones((1, 2), np.float32)))["sum"].numpy().tolist())

threading.Thread(target=run).start() if sys.argv[2] == "thread" else atexit.register(run)
"""


@pytest.mark.parametrize("when", ["thread", "atexit"])
def test_a_graph_runs_when_the_main_thread_has_ended(sum_and_product: Path, when: str) -> None:
    command = [sys.executable, "-c", LATE, sum_and_product, when]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[[2.0, 2.0]]\n" * 6, "", 0)


def test_closing_after_a_fault_of_the_gpu_tells_it_and_frees_everything(sum_and_product, monkeypatch) -> None:
    backend = onnxruntime_on_host(monkeypatch)
    session = backend.open(sum_and_product, SessionOptions())
    session.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))
    session.device.fault = "an illegal address"
    with pytest.raises(GraphError, match="an illegal address"):
        session.close()
    session.close()  # which is done
    with pytest.raises(RuntimeError, match="the thread has ended"):
        session.thread.run(int)
    gc.collect()
    assert (session.library, session.device.sessions, session.device.used) == (None, 0, 0)


def test_a_run_that_waited_for_its_turn_while_the_session_was_closed_says_so(session) -> None:
    said: list[str] = []

    def run() -> None:
        with pytest.raises(RuntimeError) as caught, session.bind() as binding:
            binding.run(dict.fromkeys("ab", np.ones((2, 2), np.float32)))
        said.append(str(caught.value))

    waiting = threading.Thread(target=run)
    with session.device.turn():
        waiting.start()
        waiting.join(0.2)
        session.close()
    waiting.join(10)
    assert said == ["this session is closed; open the graph again to run it"]
