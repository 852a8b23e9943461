"""What is removed is gone as a whole, whatever others do in the folder meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mutoscope.server.data_folder import remove_folder


def test_a_folder_goes_whole_though_files_are_renamed_and_added_while_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "video"
    folder.mkdir()
    for name in ("a", "temporary", "z"):
        (folder / name).touch()
    unlink, rmdir, done = os.unlink, os.rmdir, list[str]()

    def renamed_before(path: Any, **more: Any) -> None:
        if not done:
            done.append("renamed")
            (folder / Path(path).name).rename(folder / "whole")
        unlink(path, **more)

    def added_before(path: Any, **more: Any) -> None:
        if done == ["renamed"]:
            done.append("added")
            (folder / "late").touch()
        rmdir(path, **more)

    monkeypatch.setattr(os, "unlink", renamed_before)
    monkeypatch.setattr(os, "rmdir", added_before)
    remove_folder(folder)
    assert done == ["renamed", "added"] and not folder.exists()
    remove_folder(folder)  # nothing is there


def test_what_the_disk_refuses_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(13, "not allowed")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(PermissionError):
        remove_folder(tmp_path)
