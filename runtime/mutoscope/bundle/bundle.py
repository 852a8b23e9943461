"""The bundle: the one folder that export writes and the runtime reads, and the only thing they share.

Knows the files of a bundle, their hashes and which paths are safe. Knows nothing of ONNX, backends or requests.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import msgspec
from mutoscope_engines.cache.shipped import INDEX, ShippedEngines
from mutoscope_engines.system.file_hash import file_sha256

from ..errors import BundleError
from .checks import decode_manifest
from .manifest import MANIFEST, FileRecord, Graph, Manifest

TOKENIZER = "tokenizer.json"
ENGINES = "engines"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read. Its files are only handed out once `verify` has passed."""

    root: Path
    manifest: Manifest
    sha256: str  # of the manifest, which names the hash of every other file: the identity of the whole
    engines: ShippedEngines | None = None  # those that came with it, where they are trusted

    @classmethod
    def open(cls, root: Path | str, *, verify: bool = True) -> Bundle:
        """Reads a bundle, and checks every file's size and hash unless told not to.

        Raises:
            BundleError: missing, damaged, of an unknown version or unsafe; or to be checked, at a path that is not
                UTF-8.
        """
        root = Path(root)
        if verify:  # to be run, not only looked at
            refuse_path(root)
        if not root.is_dir():
            raise BundleError(f"there is no bundle at {root}: not a folder. Export a checkpoint to it")
        try:
            if not (root / MANIFEST).exists():
                raise BundleError(
                    f"{root} has no {MANIFEST}: not a bundle, or its export did not finish. Export it again"
                )
            content = _safe_path(root, MANIFEST).read_bytes()
        except OSError as error:
            raise BundleError(f"{root / MANIFEST} cannot be read: {error.strerror}") from error
        bundle = cls(root, decode_manifest(content), hashlib.sha256(content).hexdigest())
        if verify:
            for _ in bundle.verify():
                pass
        return bundle

    def verify(self) -> Iterator[str]:
        """Checks file after file and yields the name of each that is right.

        Raises:
            BundleError: at the first that is missing, unsafe, or of another size or hash than the manifest says; and
                for a file beside a graph that the manifest does not list, because a graph could take weights from it.
        """
        for name, record in self.manifest.files.items():
            if name in self.left_out:
                continue
            try:
                self._check(name, record)
            except OSError as error:
                raise BundleError(f"{name} in {self.root} cannot be read: {error.strerror}") from error
            yield name
        for folder in {self._folder_of(graph) for graph in self.manifest.all_graphs}:
            self._refuse_unlisted_in(folder)

    def _folder_of(self, graph: Graph) -> Path:
        folder = self.path(graph.file).parent
        if folder == self.root:
            raise BundleError(
                f"{graph.file} in {self.root} is a graph and must be in a subfolder; refused. Export the bundle again"
            )
        if elsewhere := [name for name in graph.weights if self.path(name).parent != folder]:
            raise BundleError(
                f"{elsewhere[0]} in {self.root} has weights of {graph.file} and must be in the same folder; refused. "
                "Export the bundle again"
            )
        return folder

    def _refuse_unlisted_in(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            name = path.relative_to(self.root).as_posix()
            if name not in self.manifest.files and (path.is_symlink() or not path.is_dir()):
                raise BundleError(
                    f"{name} in {self.root} is beside a graph, and the manifest does not list it; refused. "
                    "Remove it, or export the bundle again"
                )

    def _check(self, name: str, record: FileRecord) -> None:
        path = _safe_path(self.root, name)
        size = path.stat().st_size
        if size != record.size:
            raise BundleError(
                f"{name} in {self.root} has {size} bytes, and the manifest says {record.size}: "
                "truncated or replaced. Copy or export the bundle again"
            )
        if file_sha256(path) != record.sha256:
            raise BundleError(
                f"{name} in {self.root} does not have the hash that the manifest says: "
                "changed or damaged. Copy or export the bundle again"
            )

    @cached_property
    def left_out(self) -> frozenset[str]:
        """The files of graphs that are not there, in a bundle that was shipped with its engines alone."""
        if not (self.engines_folder / INDEX).is_file():
            return frozenset()
        named = {name for graph in self.manifest.all_graphs for name in (graph.file, *graph.weights)}
        return frozenset(name for name in named if not os.path.lexists(_named_path(self.root, name)))

    @property
    def engines_folder(self) -> Path:
        """Where engines are that travel with the bundle. The manifest does not list them: their index does."""
        return self.root / ENGINES

    def with_engines(self, trusted: Collection[str]) -> Bundle:
        """The same, with the engines that came with it.

        Args:
            trusted: SHA-256 of indexes of engines; one must be that of this bundle's.

        Raises:
            EngineError: there are none, or others.
        """
        return replace(self, engines=ShippedEngines.open(self.engines_folder, trusted))

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies, or lay before it was left out.

        Raises:
            BundleError: it is not listed, missing, or its path leaves the folder.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{name!r} is not a file of the bundle {self.root}")
        return self.root / name if name in self.left_out else _safe_path(self.root, name)

    def size_of(self, graph: Graph) -> int:
        """Bytes of a graph with its weights. Those that it shares count for each graph that has them."""
        return self.manifest.files[graph.file].size + graph.weight_bytes

    def content_of(self, graph: Graph) -> dict[str, str]:
        """SHA-256 of a graph and of the files with its weights, by name in their folder."""
        return {PurePosixPath(name).name: self.manifest.files[name].sha256 for name in (graph.file, *graph.weights)}


def write_manifest(root: Path, manifest: Manifest) -> Bundle:
    """Publishes a bundle: the last act of an export. `manifest.files` is filled in from what lies in `root`;
    names in `root` that start with a dot, such as what an interrupted call of this function leaves, are passed over.

    The manifest appears whole under its name or not at all.
    """
    files = {
        path.relative_to(root).as_posix(): FileRecord(sha256=file_sha256(path), size=path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / MANIFEST and not (path.parent == root and path.name.startswith("."))
    }
    content = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)), indent=1)
    temporary = root / f".{MANIFEST}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(content + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, root / MANIFEST)
    return Bundle.open(root, verify=False)


def refuse_path(root: Path) -> None:
    """
    Raises:
        BundleError: the libraries that open graphs and tokenizers cannot be given this path.
    """
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise BundleError(
            f"the path {str(root)!a} is not UTF-8, and the libraries that open graphs need UTF-8. Rename the folder"
        ) from None


def _named_path(root: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or not pure.parts:
        raise BundleError(f"the manifest of {root} names {name!r}, a path that leaves the bundle; refused")
    return root / pure


def _safe_path(root: Path, name: str) -> Path:
    path = _named_path(root, name)
    real_path = Path(os.path.realpath(path))  # `Path.resolve` would raise on a loop of links
    if not real_path.is_relative_to(root.resolve()):
        raise BundleError(
            f"{name} in {root} is a link that leaves the bundle; refused. Where you trust it, as in a cache of the "
            f"Hugging Face hub, copy the bundle with what its links lead to: cp -rL {shlex.quote(str(root))} BUNDLE"
        )
    if not path.is_file():
        raise BundleError(f"{name} is missing from {root}. Copy or export the bundle again")
    return path
