"""Where a bundle may go, that it appears whole, and what an export that was killed leaves to the next."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mutoscope.errors import BundleError, OutputError, RequestError
from mutoscope_export.destination import new_bundle
from mutoscope_export.errors import ExportError

OLD = {"manifest.json": "old", "a/model.onnx": "old", "notes.txt": "mine"}
NEW = {"manifest.json": "new", "a/model.onnx": "new", "b/model.onnx": "new"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def export_to(destination: Path, *, overwrite: bool = False) -> None:
    with new_bundle(destination, overwrite=overwrite) as folder:
        fill(folder, NEW)


@pytest.fixture(params=["nothing", "an empty folder", "a link to an empty folder", "a link to nothing", "a bundle"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "place" / "bundle"
    if request.param == "an empty folder":
        path.mkdir(parents=True)
    if request.param == "a bundle":
        fill(path, OLD)
    if "link" in request.param:
        path.parent.mkdir()
        path.symlink_to(tmp_path / "real")
        if "empty" in request.param:
            (tmp_path / "real").mkdir()
    return path


def test_a_bundle_appears_whole_and_nothing_else(destination: Path, tmp_path: Path) -> None:
    was_link = destination.is_symlink()
    export_to(destination, overwrite=True)
    assert content(destination) == NEW
    assert destination.is_symlink() == was_link
    assert {path.name for path in tmp_path.rglob("*") if path.name.startswith(".")} == set()


@pytest.mark.parametrize("error", [ExportError("refused"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_an_export_that_fails_leaves_everything_as_it_was(
    destination: Path, tmp_path: Path, error: BaseException
) -> None:
    before = sorted(tmp_path.rglob("*")), content(tmp_path)
    raised = ExportError if isinstance(error, OSError) else type(error)
    with pytest.raises(raised), new_bundle(destination, overwrite=True) as folder:
        fill(folder, NEW)
        raise error
    assert (sorted(tmp_path.rglob("*")), content(tmp_path)) == before


@pytest.mark.parametrize("stuck", ["a", "b", "manifest.json"])
def test_a_bundle_comes_back_where_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    destination = tmp_path / "bundle"
    fill(destination, OLD)
    rename = Path.rename

    def refuses(path: Path, target: Path) -> Path:
        if target == destination / stuck and path.parent.suffix == ".partial":
            raise OSError(5, "Input/output error")
        if target == destination / "manifest.json" and path.parent.suffix == ".partial":
            assert set(NEW) - {"manifest.json"} <= set(content(destination))  # it arrives last
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(ExportError, match=r"bundle cannot be written: .*Input/output error"):
        export_to(destination, overwrite=True)
    assert content(tmp_path) == {f"bundle/{name}": text for name, text in OLD.items()}


@pytest.mark.parametrize("stuck", OLD)
def test_a_bundle_comes_back_where_it_cannot_be_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    destination = tmp_path / "bundle"
    fill(destination, OLD)
    rename = Path.rename

    def refuses(path: Path, target: Path) -> Path:
        if path == destination / Path(stuck).parts[0]:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(ExportError, match=r"bundle cannot be written: .*Input/output error"):
        export_to(destination, overwrite=True)
    assert content(tmp_path) == {f"bundle/{name}": text for name, text in OLD.items()}


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare")
@pytest.mark.parametrize("old", [{}, OLD])
@pytest.mark.parametrize("mount", ["-t tmpfs none", "--bind {0}/volume"])
def test_a_mount_point_is_filled(tmp_path: Path, mount: str, old: dict[str, str]) -> None:
    """As the volume of a container is; nothing can be renamed onto it. Bind mounts are of the same file system."""
    script = tmp_path / "export.py"
    script.write_text(
        "import sys; from pathlib import Path; from tests.export.test_destination import *\n"
        f"fill(Path(sys.argv[1]), {old!r})\nexport_to(Path(sys.argv[1]), overwrite=True)\n"
        "assert content(Path(sys.argv[1])) == NEW, content(Path(sys.argv[1]))"
    )
    for name in ("mnt", "volume"):
        (tmp_path / name).mkdir()
    command = f"mount {mount.format(tmp_path)} {tmp_path}/mnt && {sys.executable} {script} {tmp_path}/mnt"
    probe = subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True)
    if probe.returncode:
        pytest.skip("this machine lets nothing be mounted")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr


def test_what_a_killed_export_left_is_cleared_by_the_next(destination: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from mutoscope_export.destination import new_bundle\n"
        "with new_bundle(Path(sys.argv[1]), overwrite=True) as folder:\n"
        "    (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(destination)])
    assert done.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.rglob("half")]
    export_to(destination, overwrite=True)
    assert content(destination) == NEW
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("again", [0, 2])
@pytest.mark.parametrize("renames", range(8))
def test_a_bundle_comes_back_whenever_the_export_that_replaces_it_is_killed(
    tmp_path: Path, renames: int, again: int
) -> None:
    """Also where the next one is killed while it brings it back."""
    code = """
import os, signal, sys
from tests.export.test_destination import *
rename, left = Path.rename, iter(range(int(sys.argv[2])))
def rename_or_die(path, target):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = rename_or_die
export_to(Path(sys.argv[1]), overwrite=True)
"""
    destination = tmp_path / "bundle"
    fill(destination, OLD)
    root = Path(__file__).parents[2]
    for count in (renames, again):
        done = subprocess.run([sys.executable, "-c", code, str(destination), str(count)], cwd=root)
        assert done.returncode == -signal.SIGKILL
    with pytest.raises(RequestError, match="is already a bundle; pass overwrite=True to replace"):
        export_to(destination)
    arrived = renames == 7  # all of the new one, and the old one is about to go
    assert content(tmp_path) == {f"bundle/{name}": text for name, text in (NEW if arrived else OLD).items()}
    export_to(destination, overwrite=True)
    assert content(tmp_path) == {f"bundle/{name}": text for name, text in NEW.items()}


def test_two_exports_to_one_place_do_not_mix(destination: Path) -> None:
    with new_bundle(destination, overwrite=True) as folder:
        with pytest.raises(RequestError, match=r"another export to .* is running"):
            export_to(destination, overwrite=True)
        fill(folder, NEW)
    assert content(destination) == NEW


def test_a_file_system_without_locks_serves_and_leftovers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with new_bundle(tmp_path / "bundle", overwrite=False) as folder:
        with pytest.raises(RequestError, match=r"another export .* if there is none, remove (\S+)$") as caught:
            export_to(tmp_path / "bundle")
        fill(folder, NEW)
        lock = Path(str(caught.value).split()[-1])
        left_by_another_machine = lock.read_text().replace(socket.gethostname(), "another")
    assert content(tmp_path) == {f"bundle/{name}": text for name, text in NEW.items()}
    other = tmp_path / lock.name.replace("bundle", "other")
    other.write_text(left_by_another_machine)
    fill(tmp_path, {".other.partial/half": "x"})
    with pytest.raises(RequestError, match=f"another export .* if there is none, remove {other}"):
        export_to(tmp_path / "other")
    other.unlink()
    export_to(tmp_path / "other")
    assert content(tmp_path / "other") == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "bundle cannot be written: no permission to write there"),
        (OSError(errno.ENOSPC, "No space left on device"), "bundle cannot be written: there is no space left; free"),
        (
            PermissionError(errno.EACCES, "Permission denied", "weights"),
            r"denied: 'weights'\)\. Nothing was",
        ),
    ],
)
def test_what_the_system_said_is_told_with_what_to_do(tmp_path: Path, error: OSError, complaint: str) -> None:
    with pytest.raises(ExportError, match=complaint), new_bundle(tmp_path / "bundle", overwrite=False):
        raise error


def test_a_destination_that_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    fill(tmp_path, {"notes/thesis.txt": "years of work"})
    for place, message in (("notes", "has files and is not a bundle"), ("notes/thesis.txt", "is a file")):
        with pytest.raises(RequestError, match=message):
            export_to(tmp_path / place, overwrite=True)
    assert content(tmp_path) == {"notes/thesis.txt": "years of work"}


def test_a_bundle_is_only_replaced_on_demand(tmp_path: Path) -> None:
    fill(tmp_path / "bundle", OLD)
    with pytest.raises(RequestError, match="pass overwrite=True to replace"):
        export_to(tmp_path / "bundle")
    assert content(tmp_path / "bundle") == OLD


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"bundle cannot be written: (Not a directory|File exists); write elsewhere"
    with pytest.raises(OutputError, match=message), new_bundle(tmp_path / "file" / "bundle", overwrite=False):
        pytest.fail("the work began")


def test_a_path_that_the_libraries_cannot_be_given_is_refused_before_the_work(tmp_path: Path) -> None:
    destination = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(BundleError, match="is not UTF-8"), new_bundle(destination, overwrite=False):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []
