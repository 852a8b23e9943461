"""Wan text-to-video (Wan 2.1, and what has its structure): what export needs to know of it.

`description` reads a checkpoint's configuration, `graph_sources` says which graphs come of it, and `reference` runs the
authors' own pipeline. The arithmetic is in the modules beside them.
"""

from __future__ import annotations

from .description import NAME, PIPELINES, describe
from .graph_sources import sources
from .original_names import original_name
from .reference import reference

__all__ = ["NAME", "PIPELINES", "describe", "original_name", "reference", "sources"]
