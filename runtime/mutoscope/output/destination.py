"""Where finished work goes: a file or folder that gets its name only when it is whole.

What the last step needs is tried before the first: a video may take hours, and a name that is refused at the end would
lose it. Knows links, mount points and permissions. Knows nothing of formats.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from ..errors import OutputError

_REASONS = {
    errno.ENOSPC: "there is no space left; free some, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some, or write elsewhere",
    errno.EFBIG: "the file would be larger than this process or file system allows; write elsewhere",
    errno.EACCES: "no permission to write there; choose another folder"
    + (", or close the program that has the file open" if sys.platform == "win32" else ""),
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def find_place(target: Path, *, is_folder: bool) -> Path:
    """Where a file or folder of this name will be, once it is known that it can be; nothing is left there.

    A link stays, and what it leads to is replaced. A folder must be new or empty.

    Raises:
        OutputError: it cannot; says why, and what to do.
    """
    try:
        # Only a link's: a relative path needs no permission in the folders above the current one.
        place = Path(os.path.realpath(target)) if target.is_symlink() else target
        _refuse_occupied(target, place, is_folder)
        probe = temporary_name(place)
        try:
            probe.touch(exist_ok=False)
            if place.is_file():
                probe.unlink()
                probe.mkdir()
                _try_replacing(place, probe)
        finally:
            remove(probe)
    except OSError as error:
        raise refusal(error, target) from error
    return place


def temporary_name(place: Path) -> Path:
    """A new name on the same file system, from where `publish` takes what is finished."""
    folder = place if place.is_dir() else place.parent
    return folder / f".{place.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp"


def publish(temporary: Path, place: Path) -> None:
    """Gives a finished file or folder its name.

    A folder that was there stays, with its owner and permissions, as it may be a mounted volume: what is finished moves
    into it, in the order of the names.

    Raises:
        OutputError: the system refuses after all; names the file or folder that the finished work was left in.
    """
    try:
        if temporary.parent == place:
            _move_into(place, temporary)
        else:
            os.replace(temporary, place)
    except OSError as error:
        kept = temporary.with_name(f"{place.stem}-{secrets.token_hex(3)}{place.suffix}")
        with suppress(OSError):
            os.rename(temporary, kept)
            raise OutputError(f"{refusal(error, place)}. What was finished is in {kept}") from error
        raise


def remove(temporary: Path) -> None:
    """Removes what was not published, if there is anything."""
    try:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    except OSError:  # the folder or its permission went away; the error that matters is already on its way
        return


def refusal(error: OSError, target: Path) -> OutputError:
    """What the system said, in words."""
    other = f"{error.strerror}; write elsewhere" if error.strerror else str(error)
    reason = _REASONS.get(error.errno or 0, other)
    return OutputError(f"{target} cannot be written: {reason}")


def _refuse_occupied(target: Path, place: Path, is_folder: bool) -> None:
    if place.is_symlink():
        raise OutputError(f"{target} is a link that leads to itself; remove it, or choose another name")
    parent = place.parent if target.is_symlink() else target.parent
    if not parent.is_dir():
        raise OutputError(f"there is no folder {parent} to write {place.name!r} into; make it first")
    if place.is_dir() and not is_folder:
        raise OutputError(f"{target} is a folder; name a file in it, for example {target}/video{target.suffix}")
    if not place.exists():
        return
    if is_folder and (not place.is_dir() or _content(place)):
        raise OutputError(
            f"{target} already exists and is not an empty folder; name a new one, or give an ending such as .mp4"
        )
    kind = stat.S_IFMT(place.stat().st_mode)
    if kind in _KINDS:
        raise OutputError(f"{target} is {_KINDS[kind]}, not a file; choose another name")
    if place.is_file() and _is_mounted(place):
        raise OutputError(
            f"{target} is mounted there as a single file, which cannot be replaced; mount its folder, or choose "
            "another name"
        )


def _content(folder: Path) -> list[Path]:
    """What is in it, but for the unfinished work of others and of processes that were killed."""
    return [
        entry
        for entry in folder.iterdir()
        if not (entry.name.startswith(f".{folder.name}.") and entry.name.endswith(".tmp"))
    ]


def _try_replacing(file: Path, folder: Path) -> None:
    """Asks the system to put a folder where a file is, which POSIX forbids: it changes nothing.

    Linux looks at what protects the file first: another owner in a folder like /tmp, or attributes such as immutable.
    """
    if os.name != "posix":
        return
    with suppress(NotADirectoryError):
        os.rename(folder, file)


def _is_mounted(file: Path) -> bool:
    try:
        return os.path.realpath(file) in (partition.mountpoint for partition in psutil.disk_partitions(all=True))
    except OSError:  # a system that does not tell
        return False


def _move_into(place: Path, temporary: Path) -> None:
    if _content(place):
        raise OSError(errno.ENOTEMPTY, "something else was written into this folder meanwhile")
    moved = []
    try:
        for entry in sorted(temporary.iterdir()):
            moved.append(entry)
            os.rename(entry, place / entry.name)
    except BaseException:  # Ctrl-C too
        for entry in moved:
            with suppress(FileNotFoundError):
                os.rename(place / entry.name, entry)
        raise
    temporary.rmdir()
