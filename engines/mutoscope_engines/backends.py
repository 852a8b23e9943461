"""Which backends there are, and which of them to use here. Importing this imports none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import dropwhile, islice
from pathlib import Path

from .errors import BackendUnavailableError
from .names import no_such
from .onnxruntime.installation import unusable_because
from .session import Backend, Session, SessionOptions

AUTO = "auto"
JOINED_BY = "+"  # between the names of backends to choose from
# Name to "module:class", in the order of preference. A test may put a function in its place.
BACKENDS: dict[str, str | Callable[[], Backend]] = {
    "tensorrt-rtx": "mutoscope_engines.tensorrt.backend:TensorRtRtx",
    "tensorrt": "mutoscope_engines.tensorrt.backend:ClassicTensorRt",
    "onnxruntime-cuda": "mutoscope_engines.onnxruntime.cuda:OnnxRuntimeCuda",
    "openvino": "mutoscope_engines.openvino_cpu:OpenVinoCpu",
    "onnxruntime": "mutoscope_engines.onnxruntime.cpu:OnnxRuntimeCpu",
}
NEED_ONNXRUNTIME = ("onnxruntime-cuda", "onnxruntime")  # as soon as they are imported


class UnusableBackend(Backend):
    """Stands for a backend whose library is not there, or is damaged."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self._reason = name, reason

    def unavailable_because(self) -> str:
        return self._reason

    def version(self) -> str:
        return "none"

    def supports(self, precision: str) -> bool:
        return False

    def open(self, graph: Path, options: SessionOptions) -> Session:
        raise BackendUnavailableError(f"{self.name}: {self._reason}")


def load_backend(name: str) -> Backend:
    """The backend of this name in the table, whether or not it can run here.

    Raises:
        BackendUnavailableError: there is none of this name; lists those there are.
    """
    _refuse_unknown([name])
    row = BACKENDS[name]
    if callable(row):
        return row()
    module, _, attribute = row.partition(":")
    if name in NEED_ONNXRUNTIME and (reason := unusable_because(module)):
        return UnusableBackend(name, reason)
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def backends_named(name: str | Backend) -> Iterator[Backend]:
    """Those to choose from: one, several as in "onnxruntime+openvino", or for "auto" all, in the order of preference. A
    backend itself is the only one.

    Raises:
        BackendUnavailableError: there is none of a name; lists those there are.
    """
    if isinstance(name, Backend):
        return iter([name])
    if name == AUTO:
        return map(load_backend, BACKENDS)
    names = name.split(JOINED_BY)
    _refuse_unknown(names)
    return map(load_backend, sorted(set(names), key=list(BACKENDS).index))


def _refuse_unknown(names: Sequence[str]) -> None:
    for name in names:
        if name not in BACKENDS:
            raise BackendUnavailableError(f"{no_such('backend', name, list(BACKENDS))}, or {AUTO!r} by itself")


def choose_backend(
    name: str | Backend,
    precisions: Sequence[str],
    lacking: Callable[[Backend, str], str | None] = lambda backend, precision: None,
) -> tuple[Backend, str, list[str]]:
    """Of `backends_named`, the first that can run here and is not slower than one after it, and of `precisions` the
    one it prefers, or the first that it runs. On the CPU, one after it also comes first where that runs an earlier one
    of `precisions`: their order is the exporter's.

    Args:
        lacking: what a backend lacks for the graphs of a precision, such as engines; `None` if nothing.

    Returns: the backend, the precision, and for each that could run here but for what it lacks, what that is.

    Raises:
        BackendUnavailableError: there is none; says for each why not, and which other backend can run here.
    """
    refusals: list[str] = []
    lacks: list[str] = []
    slower: list[tuple[Backend, str, list[str]]] = []  # what to return where nothing faster runs
    for backend in backends_named(name):
        reason = backend.unavailable_because()
        if reason is None:
            runs = [precision for precision in precisions if backend.supports(precision)]
            runs.sort(key=lambda precision: precision != backend.preferred_precision)
            reason = f"it does not run graphs in {' or '.join(precisions)}"
            for precision in runs:
                reason = lacking(backend, precision)
                if reason is not None:
                    lacks.append(f"{backend.name} in {precision}: {reason}")
                elif backend.is_slower(precision) or _yields(backend, precision, precisions, name):
                    slower.append((backend, precision, list(lacks)))
                else:
                    return backend, precision, lacks
        refusals.append(f"{backend.name}: {reason}")
    if slower:
        return slower[0]
    if name != AUTO:
        with suppress(BackendUnavailableError):
            refusals.append(f"or choose the backend {choose_backend(AUTO, precisions, lacking)[0].name}")
    raise BackendUnavailableError("no backend can run this here; tried " + "; ".join(refusals))


def _yields(backend: Backend, precision: str, precisions: Sequence[str], name: str | Backend) -> bool:
    """Whether a backend on the CPU leaves a bundle to a later one, which runs a precision that is named before. Loads
    those only where there is such a precision."""
    if backend.on_device or precision in (backend.preferred_precision, precisions[0]):
        return False
    before = precisions[: list(precisions).index(precision)]
    later = islice(dropwhile(lambda each: each.name != backend.name, backends_named(name)), 1, None)
    return any(other.unavailable_because() is None and any(map(other.supports, before)) for other in later)
