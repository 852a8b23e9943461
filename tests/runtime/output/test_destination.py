"""Places that cannot take a name are refused before any work, and those that can are left as they were.

Mount points, owners and attributes are real ones, made as root.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mutoscope.errors import OutputError
from mutoscope.output.destination import find_place, publish, temporary_name

from tests.runtime.clips import chunked, leftovers, make_header, scene

root_on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root on Linux may mount and give away files"
)


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    mounted: list[Path] = []

    def make(target: Path, *arguments: object) -> None:
        done = subprocess.run(["mount", *map(str, arguments), str(target)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
        mounted.append(target)

    yield make
    for target in mounted:
        subprocess.run(["umount", target], check=True)


def put(place: Path, content: str | dict[str, str]) -> None:
    temporary = temporary_name(place)
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        temporary.mkdir()
        for name, text in content.items():
            (temporary / name).write_text(text)
    publish(temporary, place)


def refused(target: Path, *, is_folder: bool = False) -> str:
    before = leftovers(target.parent)
    with pytest.raises(OutputError) as caught:
        find_place(target, is_folder=is_folder)
    assert leftovers(target.parent) == before
    return str(caught.value)


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "monday.mp4").write_text("old")
    (tmp_path / "latest.mp4").symlink_to("videos/monday.mp4")
    put(find_place(tmp_path / "latest.mp4", is_folder=False), "new")
    assert os.readlink(tmp_path / "latest.mp4") == "videos/monday.mp4"
    assert (tmp_path / "videos" / "monday.mp4").read_text() == "new"
    assert leftovers(tmp_path / "videos") == ["monday.mp4"]


def test_a_link_to_what_is_yet_to_be_leads_there(tmp_path: Path) -> None:
    (tmp_path / "latest.mp4").symlink_to("new.mp4")
    put(find_place(tmp_path / "latest.mp4", is_folder=False), "new")
    assert (tmp_path / "new.mp4").read_text() == "new" and (tmp_path / "latest.mp4").is_symlink()
    (tmp_path / "lost.mp4").symlink_to("missing/new.mp4")
    assert "there is no folder" in refused(tmp_path / "lost.mp4") and "missing" in refused(tmp_path / "lost.mp4")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert "is a link that leads to itself; remove it" in refused(tmp_path / "loop.mp4")


@pytest.mark.parametrize("through_a_link", [False, True])
def test_an_empty_folder_keeps_its_permissions_and_gets_the_files(tmp_path: Path, through_a_link: bool) -> None:
    folder = tmp_path / "frames"
    folder.mkdir(mode=0o750)
    number = folder.stat().st_ino
    target = tmp_path / "link" if through_a_link else folder
    if through_a_link:
        target.symlink_to(folder)
    put(find_place(target, is_folder=True), {"b": "2", "a": "1"})
    assert leftovers(folder) == ["a", "b"]
    assert (folder.stat().st_ino, stat.S_IMODE(folder.stat().st_mode)) == (number, 0o750)
    assert target.is_symlink() == through_a_link


def test_a_pipe_is_refused_and_its_reader_need_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refused(tmp_path / "pipe.mp4").endswith("is a pipe, not a file; choose another name")
    assert stat.S_ISFIFO((tmp_path / "pipe.mp4").stat().st_mode)


@root_on_linux
def test_a_mounted_folder_gets_the_files(tmp_path: Path, mount: Callable[..., None]) -> None:
    """As a Docker volume is: no rename can replace it."""
    (tmp_path / "volume").mkdir()
    mount(tmp_path / "volume", "-t", "tmpfs", "none")
    put(find_place(tmp_path / "volume", is_folder=True), {"a": "1", "b": "2"})
    assert leftovers(tmp_path / "volume") == ["a", "b"] and os.path.ismount(tmp_path / "volume")


@root_on_linux
def test_a_file_mounted_by_itself_is_refused(tmp_path: Path, mount: Callable[..., None]) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "out 1.mp4").touch()
    mount(tmp_path / "out 1.mp4", "--bind", tmp_path / "real")
    assert "is mounted there as a single file, which cannot be replaced; mount its folder" in refused(
        tmp_path / "out 1.mp4"
    )


@root_on_linux
def test_a_file_of_another_user_in_a_folder_like_tmp_is_refused(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
import psutil
from pathlib import Path
from mutoscope.output.destination import find_place
from mutoscope.errors import OutputError
os.setresuid(12345, 12345, 12345)
for name in ("theirs.mp4", "new.mp4"):
    try:
        print(find_place(Path(name), is_folder=False).name)
    except OutputError as error:
        print(error)
"""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared" / "theirs.mp4").write_text("old")
    # Without coverage, whose file another user may not write.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path / "shared", capture_output=True, text=True
    )
    refusal = "theirs.mp4 cannot be written: no permission to write there; choose another folder"
    assert (done.stdout.splitlines(), done.stderr) == ([refusal, "new.mp4"], "")
    assert leftovers(tmp_path / "shared") == ["theirs.mp4"]


@root_on_linux
def test_a_file_that_may_not_change_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "kept.mp4"
    file.write_text("old")
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", file], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        assert "no permission" in refused(file)
        assert file.read_text() == "old"
    finally:
        subprocess.run(["chattr", "-i", file], check=True)


def test_a_file_that_can_be_replaced_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "old.mp4"
    file.write_text("old")
    before = file.stat()
    assert find_place(file, is_folder=False) == file
    assert (file.read_text(), file.stat().st_ino, file.stat().st_mtime_ns) == ("old", before.st_ino, before.st_mtime_ns)
    assert leftovers(tmp_path) == ["old.mp4"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_was_finished_is_kept_where_the_last_step_fails_after_all(tmp_path: Path, is_folder: bool) -> None:
    """Here because somebody made a folder of that name meanwhile."""
    place = find_place(tmp_path / "out.mp4", is_folder=is_folder)
    (place / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot be written: .*\. What was finished is in (.*)") as caught:
        if is_folder:
            temporary = tmp_path / "temporary"
            temporary.mkdir()
            (temporary / "frame").write_text("new")
            publish(temporary, place)
        else:
            temporary = tmp_path / "temporary"
            temporary.write_text("new")
            publish(temporary, place)
    kept = Path(str(caught.value).rpartition(" is in ")[2])
    assert (kept / "frame" if is_folder else kept).read_text() == "new"
    assert kept.suffix == ".mp4" and leftovers(tmp_path) == sorted([kept.name, "out.mp4"])


def test_a_move_that_stops_half_way_leaves_the_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames").mkdir()
    place = find_place(tmp_path / "frames", is_folder=True)
    rename = os.rename
    done = []

    def rename_once(source: Path, target: Path) -> None:
        if len(done) == 1:
            done.append(None)
            raise KeyboardInterrupt
        done.append(None)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_once)
    with pytest.raises(KeyboardInterrupt):
        put(place, {"a": "1", "b": "2"})
    assert [name for name in leftovers(place) if not name.startswith(".")] == []


def test_a_folder_that_was_filled_meanwhile_is_not_mixed_with_ours(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    place = find_place(tmp_path / "frames", is_folder=True)
    temporary = temporary_name(place)
    temporary.mkdir()
    (temporary / "frame").write_text("new")
    (place / "theirs").touch()
    with pytest.raises(OutputError, match="something else was written into this folder meanwhile") as caught:
        publish(temporary, place)
    kept = Path(str(caught.value).rpartition(" is in ")[2])
    assert (kept / "frame").read_text() == "new" and leftovers(place) == sorted([kept.name, "theirs"])


def test_what_a_killed_process_left_in_a_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    left = temporary_name(find_place(tmp_path / "frames", is_folder=True))
    left.mkdir()
    put(find_place(tmp_path / "frames", is_folder=True), {"a": "1"})
    assert leftovers(tmp_path / "frames") == [left.name, "a"]


def test_a_system_that_does_not_tell_its_mounts_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse(**_: object) -> None:
        raise OSError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    (tmp_path / "out.mp4").touch()
    assert find_place(tmp_path / "out.mp4", is_folder=False) == tmp_path / "out.mp4"


@root_on_linux
def test_a_video_goes_into_a_volume(tmp_path: Path, mount: Callable[..., None]) -> None:
    from mutoscope.output.video import check_output, write_video

    (tmp_path / "volume").mkdir()
    mount(tmp_path / "volume", "-t", "tmpfs", "none")
    check_output(f"{tmp_path}/volume/")
    write_video(f"{tmp_path}/volume/", chunked(scene()), make_header())
    assert len(leftovers(tmp_path / "volume")) == 10
