from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from mutoscope_engines.errors import BackendUnavailableError
from mutoscope_engines.system.user_folders import cache_folder, data_folder

VARIABLES = ("HOME", "MUTOSCOPE_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME")


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose user has no entry in its list of users, and whose environment names no folder."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_on_linux_folders_are_where_the_desktop_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/mutoscope")
    assert data_folder() == Path("/home/someone/.local/share/mutoscope")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/cache")
    monkeypatch.setenv("XDG_DATA_HOME", "/var/tmp/data")
    assert (cache_folder(), data_folder()) == (Path("/var/tmp/cache/mutoscope"), Path("/var/tmp/data/mutoscope"))
    monkeypatch.setenv("MUTOSCOPE_CACHE", "engines")
    assert cache_folder() == Path("engines")


@pytest.mark.parametrize(
    ("find", "remedy"),
    [(cache_folder, "HOME, XDG_CACHE_HOME or MUTOSCOPE_CACHE"), (data_folder, "HOME or XDG_DATA_HOME")],
)
def test_without_a_home_the_error_names_the_variables_to_set(find: Callable[[], Path], remedy: str) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"no home folder\. Set {remedy} to the absolute path"):
        find()


def test_a_folder_that_an_older_platformdirs_could_not_resolve_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path("~/.cache/mutoscope"))
    with pytest.raises(BackendUnavailableError, match="no home folder"):
        cache_folder()
