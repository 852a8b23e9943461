"""The folder of a new bundle: tried before the work, and filled when everything is written.

Knows folders, mount points, and what an export that was killed leaves behind. Knows of a bundle only its manifest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mutoscope.bundle.bundle import refuse_path
from mutoscope.bundle.manifest import MANIFEST
from mutoscope.errors import RequestError
from mutoscope.output.destination import refusal
from mutoscope.output.file_names import refuse_reserved
from mutoscope_engines.system.file_lock import file_lock

from .errors import ExportError


@contextmanager
def new_bundle(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder to write a bundle into, which becomes `destination` when the `with` ends without an error.

    A destination that does not exist is made by one rename. A folder that exists stays what it is, so that it may be
    the mount point of a volume, which nothing can be renamed onto: the content is moved into it, the manifest last. A
    link is followed. A bundle that a killed export was replacing is put back first.

    Args:
        overwrite: replace a bundle that exists. It comes back where that fails.

    Raises:
        BundleError: its path is not UTF-8.
        RequestError: the destination is something else, or another export is writing it.
        OutputError: it cannot be written to.
        ExportError: an `OSError` in the body, or while the content was moved. Nothing was published.
    """
    refuse_reserved(str(destination))
    destination = Path(os.path.realpath(destination))
    refuse_path(destination)
    fills = destination.is_dir()
    parent = destination if fills else destination.parent
    folder, lock, leaving, previous = hidden = [
        parent / f".{destination.name}.{name}" for name in ("partial", "partial.lock", "leaving", "previous")
    ]
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    with ExitStack() as undo:
        undo.callback(_remove_empty, missing)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if not undo.enter_context(file_lock(lock, wait=False)):
                raise RequestError(
                    f"another export to {destination} is running. Wait for it; if there is none, remove {lock}"
                )
            _remove(folder)
            if fills:
                _restore(destination, leaving, previous, hidden)
            _refuse(destination, overwrite, hidden)
            folder.mkdir()
        except OSError as error:
            raise refusal(error, destination) from error
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield folder
            if fills:
                _exchange(folder, destination, leaving, previous, hidden)
            else:
                folder.rename(destination)
        except OSError as error:
            told = f" ({error})" if error.filename else ""  # it may be another file, such as one of the checkpoint
            raise ExportError(f"{refusal(error, destination)}{told}. Nothing was published") from error


def _refuse(destination: Path, overwrite: bool, hidden: list[Path]) -> None:
    if not destination.is_dir():
        if destination.exists():
            raise RequestError(f"{destination} is a file; a bundle is a folder. Name another")
        return
    found = {path.name for path in _content(destination, hidden)}
    if found and MANIFEST not in found:
        raise RequestError(f"{destination} has files and is not a bundle; name another folder")
    if found and not overwrite:
        raise RequestError(
            f"{destination} is already a bundle; pass overwrite=True to replace it, or name another folder"
        )


def _exchange(folder: Path, destination: Path, leaving: Path, previous: Path, hidden: list[Path]) -> None:
    """Moves the old bundle out of `destination` and the content of `folder` into it; undone where that fails.

    The old bundle is `previous` once it is whole there, and `leaving` until then. `_restore` goes by that.
    """
    try:
        leaving.mkdir()
        _move(_content(destination, hidden), leaving, manifest_first=True)
        leaving.rename(previous)
        _move(folder.iterdir(), destination, manifest_first=False)
    except BaseException:
        _restore(destination, leaving, previous, hidden)
        raise
    previous.rename(folder / previous.name)  # which goes as a whole


def _restore(destination: Path, leaving: Path, previous: Path, hidden: list[Path]) -> None:
    """Puts back the old bundle of an exchange that stopped half way, in this process or in one that was killed."""
    if (destination / MANIFEST).exists():  # nothing had left, or everything has arrived
        _remove(previous)
    if previous.exists():  # whole, so what is in the destination is of the new bundle
        for path in _content(destination, hidden):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        previous.rename(leaving)
    if leaving.exists():
        _move(leaving.iterdir(), destination, manifest_first=False)
        leaving.rmdir()


def _content(destination: Path, hidden: list[Path]) -> list[Path]:
    return [path for path in destination.iterdir() if path not in hidden]


def _move(paths: Iterable[Path], target: Path, *, manifest_first: bool) -> None:
    """A manifest leaves a folder first and arrives last, so that it is never beside half of its files."""
    for path in sorted(paths, key=lambda path: path.name == MANIFEST, reverse=manifest_first):
        path.rename(target / path.name)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
