"""TensorRT-RTX and TensorRT as backends: which engine of the cache serves a graph here, and what it takes.

Knows the cache and the GPU's capability. What runs an engine is in `session.py`; nothing is built here.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from copy import copy
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from ..cache.catalogue import EngineCatalogue
from ..cache.engine_cache import EngineCache
from ..cache.identity import EngineIdentity, ShapeRange
from ..cache.record import EngineRecord
from ..device.cuda import CudaDevice, compute_capability, cuda_unavailable_because
from ..device.device import Device
from ..errors import EngineMissingError
from ..session import Backend, EngineWanted, Figures, Session, SessionOptions
from ..targets import Target, find_target
from .kernel_cache import KernelCache
from .library import LIBRARIES, TensorRT
from .session import EngineUse, TensorRtSession, TensorRtSettings

KEPT_OF_STREAMED = 0.25  # of streamed weights at least as many stay: what is on its way needs room too


class TensorRtBackend(Backend):
    """One of the two libraries.

    Args:
        name: in `LIBRARIES`.
        target: the GPU to find engines for, to plan for another than this machine's.

    Attributes:
        catalogue: the engines of a snapshot's moment; `None` looks anew each time.
    """

    on_device = runs_engines = True

    def __init__(self, name: str, settings: TensorRtSettings | None = None, target: Target | None = None) -> None:
        self.name = name
        self._target = target
        self.library: TensorRT = LIBRARIES[name]
        self._settings = settings or TensorRtSettings()
        self._opened: Device | None = None
        self.catalogue: EngineCatalogue | None = None

    def device(self, options: SessionOptions) -> Device:
        """The GPU, opened once."""
        if self._opened is None:
            self._opened = CudaDevice(options.stream)
        return self._opened

    def target(self) -> Target:
        """What engines for this GPU were built for."""
        return self._target or find_target(f"sm{compute_capability()}")

    def cache(self) -> EngineCache:
        """Where its engines are looked for."""
        return EngineCache()

    def unavailable_because(self) -> str | None:
        if find_spec(self.library.module_name) is None:
            return f"{self.library.module_name} is not installed; run: pip install 'mutoscope[{self.name}]'"
        return cuda_unavailable_because()

    def version(self) -> str:
        return self.library.version()

    def supports(self, precision: str) -> bool:
        return precision in self.target().precisions

    def memory_bytes(self, options: SessionOptions) -> int:
        return self.device(options).free_bytes()

    def snapshot(self) -> TensorRtBackend:
        """This backend over the engines of this moment, each of whose records is read once."""
        snapshot = copy(self)
        snapshot.catalogue = self.cache().catalogue()
        return snapshot

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        engines = self._engines()
        try:
            record = self._record(engines, wanted, streams=False)
        except EngineMissingError as error:
            raise EngineMissingError(f"{graph.parent.name}: {error}") from error
        report, profile = record.report, record.identity.profile
        streamable = 0
        with suppress(EngineMissingError):
            streaming = self._find(engines, wanted, streams=True)
            streamable = int(streaming.report.weight_bytes * (1 - KEPT_OF_STREAMED))
        largest = {name: shapes.max for name, shapes in profile.items()}
        return Figures(report.weight_bytes, streamable, report.activation_bytes, largest)

    def settings(self, options: SessionOptions) -> dict[str, str]:
        captures = {"cuda_graph": "captured by the session in the second run" if options.cuda_graphs else "off"}
        return captures | {name: str(value) for name, value in asdict(self._settings).items()}

    def shares_by(self, options: SessionOptions) -> Hashable:
        record = self._record(self._engines(), _named(options), streams=options.streamed_weight_bytes > 0)
        return record.identity.digest, options.streamed_weight_bytes

    def open(self, graph: Path, options: SessionOptions) -> Session:
        """Loads the engine of a graph from the cache, or one that came with it; `options.engine` says which."""
        wanted = _named(options)
        record = self._record(self._engines(), wanted, streams=options.streamed_weight_bytes > 0)
        shipped = wanted.shipped
        stored = shipped.load(record) if shipped and record in shipped.catalogue.records else self.cache().load(record)
        kernels = KernelCache(self.cache(), record.identity.digest) if self._settings.kernel_cache else None
        return TensorRtSession(
            self.library.module,
            stored.data,
            self.device(options),
            self._settings,
            kernels,
            EngineUse(
                captures=options.cuda_graphs and "WEIGHT_STREAMING" not in record.identity.flags,
                streamed_weight_bytes=options.streamed_weight_bytes,
                activation_bytes=record.report.activation_bytes,
            ),
        )

    def _engines(self) -> EngineCatalogue:
        return self.cache().catalogue() if self.catalogue is None else self.catalogue

    def _record(self, engines: EngineCatalogue, wanted: EngineWanted, *, streams: bool) -> EngineRecord:
        """Of the engine to run. One that can stream serves for one that need not; it allocates while it runs, so no
        CUDA graph is captured of it."""
        try:
            return self._find(engines, wanted, streams=streams)
        except EngineMissingError:
            with suppress(EngineMissingError):
                return self._find(engines, wanted, streams=True)
            raise

    def _find(self, engines: EngineCatalogue, wanted: EngineWanted, *, streams: bool) -> EngineRecord:
        """Of an engine that came with the graph, if one serves, and else of one that this installation built."""
        identity = self._identity(wanted, streams=streams)
        if wanted.shipped is None:
            return engines.find(identity)
        try:
            return wanted.shipped.catalogue.find(identity)
        except EngineMissingError:
            with suppress(EngineMissingError):
                return engines.find(identity)
            raise

    def _identity(self, wanted: EngineWanted, *, streams: bool) -> EngineIdentity:
        profile = {name: ShapeRange.exactly(shape) for name, shape in wanted.shapes.items()}
        return self.library.identity(wanted.files, wanted.precision, [self.target()], profile, weight_streaming=streams)


class TensorRtRtx(TensorRtBackend):
    """TensorRT-RTX, for GeForce, RTX PRO and DGX Spark."""

    def __init__(self) -> None:
        super().__init__("tensorrt-rtx")


class ClassicTensorRt(TensorRtBackend):
    """TensorRT as it is for data centres. Nothing of it was tried."""

    def __init__(self) -> None:
        super().__init__("tensorrt")


def _named(options: SessionOptions) -> EngineWanted:
    if options.engine is None:
        raise ValueError("this backend runs engines: SessionOptions.engine must say which")
    return options.engine
