"""Engines into a bundle, for other machines: into the bundle itself, or into a copy of it without its graphs.

Knows bundles and the cache. Builds nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.shipped import ship

from ..bundle.bundle import ENGINES, Bundle
from ..bundle.manifest import MANIFEST
from ..errors import EngineError, EngineMissingError, RequestError
from .build import EngineJob


def refuse_existing(folder: Path) -> None:
    """
    Raises:
        RequestError: a copy of a bundle cannot be made there.
    """
    if folder.exists():
        raise RequestError(f"lean is {folder}, which is there already. Name a new folder, or remove it")


def ship_engines(bundle: Bundle, jobs: Iterable[EngineJob], cache: EngineCache, lean: Path | None = None) -> str:
    """Puts engines that were built into their bundle, beside those of earlier calls, or into a lean copy of it.

    Returns: the SHA-256 of their index, which whoever loads them pins.

    Raises:
        EngineError: nothing can be written there.
        EngineMissingError: an engine has left the cache again.
    """
    built = {record.identity.digest: record for record in cache.catalogue().records}
    destination = lean or bundle.engines_folder
    try:
        records = [built[job.identity.digest] for job in jobs]
        if lean is None:
            return ship(records, cache, destination)
        partial = lean.with_name(f".{lean.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _copy_without_graphs(bundle, partial)
            pin = ship(records, cache, partial / ENGINES)
            partial.rename(lean)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except KeyError:
        raise EngineMissingError(f"an engine has left {cache.folder} meanwhile. Build it again") from None
    except OSError as error:
        raise EngineError(
            f"{error.filename or destination} cannot be written: {error.strerror}. Make room, or name a folder of yours"
        ) from error
    return pin


def _copy_without_graphs(bundle: Bundle, folder: Path) -> None:
    manifest = bundle.manifest
    of_graphs = {name for graph in manifest.all_graphs for name in (graph.file, *graph.weights)}
    for name in (MANIFEST, *(name for name in manifest.files if name not in of_graphs)):
        destination = folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.root / name, destination)
