"""The error of an export, beside those of the runtime."""

from __future__ import annotations

from mutoscope.errors import MutoscopeError


class ExportError(MutoscopeError):
    """The checkpoint is refused, or a graph does not do what its network does. Nothing was published."""

    exit_code = 3
