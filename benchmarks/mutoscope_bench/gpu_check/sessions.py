"""The parts that run small graphs of the package: sessions, kept kernels, a chain and one attention."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope_engines.backends import load_backend
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import EngineIdentity, ShapeRange, content_of
from mutoscope_engines.chain import Chain
from mutoscope_engines.device.cuda import CudaDevice, compute_capability
from mutoscope_engines.difference import relative_l2
from mutoscope_engines.errors import MutoscopeError
from mutoscope_engines.session import Session, SessionOptions
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.kernel_cache import KernelCache
from mutoscope_engines.tensorrt.library import LIBRARIES
from mutoscope_engines.tensorrt.process import compile_in_process

from .part import TENSORRT, Facts, NotRunError

GRAPHS = Path(__file__).parent / "graphs"
ROWS, COLUMNS = 256, 64
TOKENS, WIDTH, SOURCE = 8192, 1536, 16  # of the attention
RUNS = 20
LARGEST_ERROR = 0.01  # relative, L2: products may be in TF32

Shapes = Mapping[str, tuple[int, ...]]
FIRST: Shapes = {"x": (ROWS, COLUMNS), "w": (COLUMNS, COLUMNS)}
SECOND: Shapes = {"h": (ROWS, COLUMNS), "x": (ROWS, COLUMNS)}
ATTENTION: Shapes = {"queries": (1, TOKENS, WIDTH), "keys": (1, TOKENS, WIDTH), "source": (1, TOKENS, SOURCE)}


def refuse_unavailable(backend: str) -> None:
    """Asks the backend whether it can run here.

    Raises:
        NotRunError: it cannot; says why.
    """
    if reason := load_backend(backend).unavailable_because():
        raise NotRunError(reason)


class Engines:
    """Engines of graphs of the package, in a folder of their own, and sessions of them on one device."""

    def __init__(self, backend: str, folder: Path) -> None:
        refuse_unavailable(backend)
        self._backend, self._folder = backend, folder
        self.device = CudaDevice()
        self.built_s: dict[str, float] = {}
        self._built: dict[str, tuple[bytes, EngineIdentity]] = {}

    def open(self, name: str, shapes: Shapes, *, kernels: bool = False) -> Session:
        """Of the graph of this name; its engine is built once. ONNX Runtime takes the graph as it is."""
        if self._backend not in TENSORRT:
            from mutoscope_engines.onnxruntime.cuda import OnnxRuntimeCudaSession

            return OnnxRuntimeCudaSession(GRAPHS / f"{name}.onnx", self.device, SessionOptions())
        from mutoscope_engines.tensorrt.session import TensorRtSession, TensorRtSettings

        if name not in self._built:
            self._built[name] = self._build(name, shapes)
        engine, identity = self._built[name]
        return TensorRtSession(
            LIBRARIES[self._backend].module,
            engine,
            self.device,
            TensorRtSettings(),
            self._kernels(identity) if kernels else None,
        )

    def _kernels(self, identity: EngineIdentity) -> KernelCache:
        key = self._folder / "key"
        return KernelCache(EngineCache(self._folder / "engines", key_path=key), identity.digest, key_path=key)

    def kept_bytes(self) -> int:
        """Bytes of compiled kernels that sessions have left in the folder."""
        return sum(path.stat().st_size for path in self._folder.rglob("*.kernels"))

    def _build(self, name: str, shapes: Shapes) -> tuple[bytes, EngineIdentity]:
        graph, file = GRAPHS / f"{name}.onnx", self._folder / f"{name}.engine"
        profile = {tensor: ShapeRange.exactly(shape) for tensor, shape in shapes.items()}
        targets = [find_target(f"sm{compute_capability()}")]
        identity = LIBRARIES[self._backend].identity(content_of(graph), "fp32", targets, profile)
        self.built_s[name] = compile_in_process(graph, file, self._backend, identity).build_s
        return file.read_bytes(), identity


def _random(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _error(given: Any, wanted: Any) -> float:
    return float(f"{relative_l2([(given, wanted)]):.3g}")


def _refuse_large(error: float) -> float:
    if not error <= LARGEST_ERROR:
        raise ValueError(f"the result is {error} away from what NumPy computes")
    return error


def precisions_here() -> tuple[str, ...]:
    """Of graphs that this GPU computes, the default first."""
    return find_target(f"sm{compute_capability()}").precisions


def session(spec: dict[str, Any]) -> Facts:
    """The first run as it is, the second captured, later ones replayed: all the same, and right."""
    with tempfile.TemporaryDirectory() as folder:
        engines = Engines(spec["backend"], Path(folder))
        with engines.open("first", FIRST) as opened, opened.bind() as binding:
            errors, same = [], True
            for seed in range(2):
                feeds = _random(FIRST, seed)
                results = [binding.run(feeds)["h"].numpy() for _ in range(3)]
                errors += [_error(result, feeds["x"] @ feeds["w"]) for result in results]
                same &= all(np.array_equal(result, results[0]) for result in results)
        return {"built_s": engines.built_s, "error": _refuse_large(max(errors)), "replays_are_the_same": same}


def kernels(spec: dict[str, Any]) -> Facts:
    """The time of a first run with nothing kept, and with what was kept by a thread that closed the session."""
    with tempfile.TemporaryDirectory() as folder:
        engines = Engines(spec["backend"], Path(folder))
        if "bf16" not in precisions_here():
            raise NotRunError("this GPU has no bfloat16")
        engines.open("attention-bf16", ATTENTION).close()  # builds it
        facts: Facts = {"built_s": engines.built_s}
        for name in ("cold_s", "warm_s"):
            started = time.perf_counter()
            opened = engines.open("attention-bf16", ATTENTION, kernels=True)
            opened.run(_random(ATTENTION))
            engines.device.synchronize()
            facts[name] = round(time.perf_counter() - started, 4)
            thread = threading.Thread(target=opened.close)
            thread.start()
            thread.join()
            facts["kept_bytes"] = engines.kept_bytes()
        return facts


def chain(spec: dict[str, Any]) -> Facts:
    """The second graph reads where the first wrote, run, captured and replayed."""
    with tempfile.TemporaryDirectory() as folder:
        engines = Engines(spec["backend"], Path(folder))
        parts = [engines.open("first", FIRST), engines.open("second", SECOND)]
        with Chain(parts) as both, both.bind() as binding:
            errors = []
            for seed in range(4):
                feeds = _random(FIRST, seed)
                result = binding.run(feeds)["y"].numpy()
                errors.append(_error(result, np.maximum(feeds["x"] @ feeds["w"], 0) + feeds["x"]))
        return {"built_s": engines.built_s, "error": _refuse_large(max(errors))}


def attention(spec: dict[str, Any]) -> Facts:
    """Milliseconds of one attention, 8,192 tokens by 12 heads of 128, and how far FP8 is from bf16."""
    with tempfile.TemporaryDirectory() as folder:
        engines = Engines(spec["backend"], Path(folder))
        facts: Facts = {"tokens": TOKENS}
        mixed = {}
        for precision in ("bf16", "fp8"):
            if precision not in precisions_here():
                facts[f"{precision}_not_run"] = "this GPU has none"
                continue
            try:
                with engines.open(f"attention-{precision}", ATTENTION) as opened, opened.bind() as binding:
                    mixed[precision] = binding.run(_random(ATTENTION))["mixed"].numpy()
                    facts[f"{precision}_ms"] = _milliseconds(partial(binding.run, {}), engines.device)
            except MutoscopeError as error:  # the other is still of worth
                facts.setdefault("checks", {})[precision] = str(error)
        with suppress(KeyError):
            facts["fp8_error"] = _error(mixed["fp8"], mixed["bf16"])
        return {"built_s": engines.built_s} | facts


def _milliseconds(run: Callable[[], object], device: CudaDevice) -> float:
    """Of one run: the second is captured, those that are timed are replayed."""
    run()
    device.synchronize()
    started = time.perf_counter()
    for _ in range(RUNS):
        run()
    device.synchronize()
    return round(1000 * (time.perf_counter() - started) / RUNS, 3)
