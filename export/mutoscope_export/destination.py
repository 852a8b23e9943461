"""The folder of a new bundle: tried before the work, and filled when everything is written.

Knows folders, mount points, and what an export that was killed leaves behind. Knows of a bundle only its manifest.
"""

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mutoscope.bundle import MANIFEST, refuse_path
from mutoscope.errors import RequestError
from mutoscope.file_names import refuse_reserved
from mutoscope_engines.file_lock import file_lock

from .errors import ExportError

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of network file systems that have none


@contextmanager
def new_bundle(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder to write a bundle into, which becomes `destination` when the `with` ends without an error.

    A destination that does not exist is made by one rename. A folder that exists stays what it is, so that it may be
    the mount point of a volume, which nothing can be renamed onto: the content is moved into it, the manifest last. A
    link is followed.

    Args:
        overwrite: replace a bundle that exists. It comes back where that fails.

    Raises:
        BundleError: its path is not UTF-8.
        RequestError: the destination is something else, cannot be written to, or another export is writing it.
        ExportError: an `OSError` in the body, or while the content was moved. Nothing was published.
    """
    refuse_reserved(str(destination))
    destination = Path(os.path.realpath(destination))
    refuse_path(destination)
    fills = destination.is_dir()
    parent = destination if fills else destination.parent
    folder = parent / f".{destination.name}.partial"
    lock = folder.with_name(f"{folder.name}.lock")
    previous = folder.with_suffix(".previous")
    _refuse(destination, overwrite, unless={folder.name, lock.name})
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    with ExitStack() as undo:
        undo.callback(_remove_empty, missing)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if not _is_free(folder, lock, undo):
                raise RequestError(
                    f"another export to {destination} is running. Wait for it; if there is none, remove {folder}"
                )
            folder.mkdir()
        except OSError as error:
            raise RequestError(f"{folder} cannot be made: {error.strerror}; name another place") from error
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield folder
            if fills:
                _exchange(folder, destination, previous, keep={folder.name, lock.name, previous.name})
            else:
                folder.rename(destination)
        except OSError as error:
            raise ExportError(
                f"{destination} could not be written: {error}. Nothing was published; free some space, or name "
                "another place"
            ) from error


def _is_free(folder: Path, lock: Path, held: ExitStack) -> bool:
    """Whether no other export writes into `folder`; removes it where that is known, because one was killed."""
    try:
        is_free = held.enter_context(file_lock(lock, wait=False))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        lock.unlink(missing_ok=True)
        return not folder.exists()
    if is_free:
        _remove(folder)
    return is_free


def _refuse(destination: Path, overwrite: bool, unless: Collection[str]) -> None:
    if not destination.is_dir():
        if destination.exists():
            raise RequestError(f"{destination} is a file; a bundle is a folder. Name another")
        return
    try:
        found = {path.name for path in destination.iterdir()} - set(unless)
    except OSError as error:
        raise RequestError(f"{destination} cannot be read: {error.strerror}; name another place") from error
    if found and MANIFEST not in found:
        raise RequestError(f"{destination} is not empty and no bundle; name another folder")
    if found and not overwrite:
        raise RequestError(f"{destination} is a bundle already; pass --overwrite to replace it, or name another folder")


def _exchange(folder: Path, destination: Path, previous: Path, keep: Collection[str]) -> None:
    """Moves what `destination` holds into `previous`, and the content of `folder` into it; undone where that fails."""
    _remove(previous)
    previous.mkdir()
    is_empty = False
    try:
        _move(destination, previous, keep=keep, manifest_first=True)
        is_empty = True
        _move(folder, destination, manifest_first=False)
    except BaseException:
        if is_empty:  # until then, what is in it is not of the new bundle
            _move(destination, folder, keep=keep, manifest_first=True)
        _move(previous, destination, manifest_first=False)
        previous.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _move(source: Path, target: Path, *, manifest_first: bool, keep: Collection[str] = ()) -> None:
    """A manifest leaves a folder first and arrives last, so that it is never beside half of its files."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == MANIFEST, reverse=manifest_first):
        if path.name not in keep:
            path.rename(target / path.name)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
