"""Which backends there are, and which of them to use here. Importing this imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from .errors import BackendUnavailableError
from .session import Backend

# Name to "module:class", in the order of preference.
BACKENDS = {
    "onnxruntime": "mutoscope_engines.onnxruntime_cpu:OnnxRuntimeCpu",
}


def load_backend(name: str) -> Backend:
    """The backend of this name, whether or not it can run here.

    Raises:
        BackendUnavailableError: there is none of this name; lists those there are.
    """
    if name not in BACKENDS:
        raise BackendUnavailableError(f"no backend is called {name!r}; there are: {', '.join(BACKENDS)}, or 'auto'")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def choose_backend(name: str, precisions: Sequence[str]) -> tuple[Backend, str]:
    """The backend asked for, or for "auto" the first that can run here, and the first of `precisions` that it runs.

    Raises:
        BackendUnavailableError: there is none; says for each why not.
    """
    refusals = []
    for candidate in BACKENDS if name == "auto" else (name,):
        backend = load_backend(candidate)
        reason = backend.unavailable_because()
        if reason is None:
            for precision in precisions:
                if backend.supports(precision):
                    return backend, precision
            reason = f"it does not run graphs in {' or '.join(precisions)}"
        refusals.append(f"{candidate}: {reason}")
    raise BackendUnavailableError("no backend can run this here; tried " + "; ".join(refusals))
