"""The folder that all workers of a batch share: claims that run out, and results that are put there once.

Knows names, claims and the clock of the share. Knows nothing of videos. The protocol, and why it holds when a worker
ends at any point, is in docs/decisions/0024-batches-in-a-folder.md.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import psutil
from mutoscope_engines.system.portable_files import remove, replace, sync

from ..errors import OutputError
from ..output.destination import refusal

MAKING, CLAIMS = "making", "claims"
UNUSED_OWNER = "-"  # of a claim that its owner had no time to sign


class Store(Protocol):
    """What workers need of the place that they share, be it a folder or an object store.

    A name is a path with "/", relative to the place.
    """

    def claim(self, key: str) -> bool:
        """Takes a video that nobody has; False where somebody has it."""

    def renew(self, key: str) -> bool:
        """Says that this worker lives; False where the claim is no longer its own."""

    def release(self, key: str) -> None:
        """Gives a claim back, if it is still this worker's own."""

    def evict(self, key: str) -> str | None:
        """Takes away the claim of a worker that ended or did not renew it in time; its name, or `None` if it lives."""

    def forget(self, key: str) -> None:
        """Removes the claim on a video that is finished, whoever has it."""

    def put_once(self, name: str, content: Path | bytes) -> bool:
        """Puts a whole file there, unless there is one of the name; a `Path` is of `workspace`, and is used up."""

    def replace(self, name: str, content: bytes) -> None:
        """Puts a whole file there, in the place of an older one."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, or `None` where there is none."""

    def names(self, folder: str) -> set[str]:
        """The files in a folder."""

    def workspace(self, name: str) -> Path:
        """Where this worker may write a file that `put_once` takes."""

    def sweep(self) -> None:
        """Removes what workers that ended left unfinished."""


class FolderStore:
    """A folder on a disk or a network share that has hard links.

    The clock is that of the share: a claim is as old as it is beside a file written just now, whatever this machine's
    clock says. A worker of this machine that has ended is known at once, without waiting for its lease.

    Args:
        root: the folder; made where it is missing.
        lease_s: seconds after which a claim that was not renewed is void.
        folders: names of the folders for results.

    Raises:
        OutputError: it cannot be written, or has no hard links.
    """

    def __init__(self, root: Path, lease_s: float, folders: tuple[str, ...] = ()) -> None:
        self.root, self.lease_s = root, lease_s
        self.owner = f"{machine_identity()}-{os.getpid()}-{secrets.token_hex(3)}"
        try:
            for folder in (MAKING, CLAIMS, *folders):
                (root / folder).mkdir(parents=True, exist_ok=True)
            self._try_links()
        except OSError as error:
            raise refusal(error, root) from error

    def __enter__(self) -> FolderStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_own()

    def claim(self, key: str) -> bool:
        """See `Store`."""
        return self._put(self._claim(key), f"{self.owner} {platform.node()}".encode(), durable=False)

    def renew(self, key: str) -> bool:
        """See `Store`."""
        place = self._claim(key)
        if not self._is_own(place):  # first, so as not to renew that of another
            return False
        for path in (place, *self._own()):
            with suppress(FileNotFoundError):
                os.utime(path)
        return True

    def release(self, key: str) -> None:
        """See `Store`."""
        place = self._claim(key)
        if self._is_own(place):
            remove(place)

    def evict(self, key: str) -> str | None:
        """See `Store`."""
        place = self._claim(key)
        try:
            signed = place.read_text("utf-8")
            owner, _, host = signed.partition(" ")
            if not self._ended(owner) and self._age_s(place) <= self.lease_s:
                return None
            away = self._temporary("evicted")
            os.rename(place, away)  # of several workers that try it, one succeeds
        except FileNotFoundError:
            return None
        except PermissionError:
            if sys.platform == "win32":  # another worker is reading it
                return None
            raise
        remove(away)
        return f"{owner or UNUSED_OWNER} on {host or 'an unknown machine'}"

    def forget(self, key: str) -> None:
        """See `Store`."""
        remove(self._claim(key))

    def put_once(self, name: str, content: Path | bytes) -> bool:
        """See `Store`."""
        return self._put(self.root / name, content, durable=True)

    def replace(self, name: str, content: bytes) -> None:
        """See `Store`."""
        place = self.root / name
        temporary = self._written(place, content, durable=True)
        try:
            replace(temporary, place)
            sync(place.parent)
        except OSError as error:
            raise refusal(error, place) from error
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> set[str]:
        """See `Store`."""
        return set(os.listdir(self.root / folder))

    def workspace(self, name: str) -> Path:
        """See `Store`."""
        return self.root / MAKING / f"{self.owner}.{name}"

    def sweep(self) -> None:
        """See `Store`."""
        now = self._now()
        for entry in list(os.scandir(self.root / MAKING)):
            owner = entry.name.lstrip(".").partition(".")[0]
            with suppress(FileNotFoundError):
                if self._ended(owner) or now - os.stat(entry.path).st_mtime > self.lease_s:
                    remove(Path(entry.path))

    def _put(self, place: Path, content: Path | bytes, *, durable: bool) -> bool:
        temporary = content if isinstance(content, Path) else self._written(place, content, durable=durable)
        try:
            first = _linked(temporary, place)
            if durable:
                sync(place.parent)
            return first
        except OSError as error:
            raise refusal(error, place) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _written(self, place: Path, content: bytes, *, durable: bool) -> Path:
        temporary = self._temporary("new")
        try:
            temporary.write_bytes(content)
            if durable:
                sync(temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise refusal(error, place) from error
        return temporary

    def _temporary(self, what: str) -> Path:
        return self.workspace(f"{what}.{secrets.token_hex(4)}")

    def _claim(self, key: str) -> Path:
        return self.root / CLAIMS / key

    def _is_own(self, place: Path) -> bool:
        try:
            return place.read_text("utf-8").partition(" ")[0] == self.owner
        except FileNotFoundError:
            return False

    def _age_s(self, place: Path) -> float:
        written = place.stat().st_mtime
        return self._now() - written

    def _now(self) -> float:
        """Seconds by the clock of the share, which also stamps the claims of all others."""
        probe = self._temporary("clock")
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError as error:
            raise refusal(error, self.root) from error
        finally:
            probe.unlink(missing_ok=True)

    def _ended(self, owner: str) -> bool:
        """Whether it is known to have ended: a process of this machine that is no longer there."""
        machine, _, process = owner.partition("-")
        number = process.partition("-")[0]
        return machine == machine_identity() and number.isdigit() and not psutil.pid_exists(int(number))

    def _own(self) -> list[Path]:
        """What this worker is making, under temporary names of its writers too."""
        return [
            Path(entry.path)
            for entry in os.scandir(self.root / MAKING)
            if entry.name.lstrip(".").startswith(f"{self.owner}.")
        ]

    def _remove_own(self) -> None:
        for path in self._own():
            path.unlink(missing_ok=True)

    def _try_links(self) -> None:
        probe, link = self._temporary("probe"), self._temporary("link")
        try:
            probe.touch()
            _linked(probe, link)
        except OSError as error:
            if not probe.exists():
                raise
            raise OutputError(
                f"{self.root} is on a file system without hard links ({error.strerror}), which keep each video from "
                "being written twice; choose a folder on another file system, and copy the videos later"
            ) from error
        finally:
            probe.unlink(missing_ok=True)
            link.unlink(missing_ok=True)


def _linked(temporary: Path, place: Path) -> bool:
    """Gives a file its name, unless there is one of that name. A network share may report an error though it did."""
    try:
        os.link(temporary, place)
    except OSError as error:
        if place.exists() and os.path.samefile(temporary, place):
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def machine_identity() -> str:
    """Tells apart whose processes this one can see: by the start of the system, and by the container."""
    seen = [platform.node()]
    if sys.platform == "linux":
        with suppress(OSError):
            seen += [Path("/proc/sys/kernel/random/boot_id").read_text("ascii"), os.readlink("/proc/self/ns/pid")]
    else:
        seen.append(str(psutil.boot_time()))
    return hashlib.sha256("".join(seen).encode()).hexdigest()[:12]
