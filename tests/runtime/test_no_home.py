"""A container that runs as a user with no home: what needs a place of its own says so in one line."""

from __future__ import annotations

import json
import pwd

import pytest
from mutoscope import cli


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for variable in ("HOME", "MUTOSCOPE_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)


def test_doctor_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["engines"]["state"].startswith("not usable: there is no folder for the engine cache")
    assert facts["bundle"]["state"] == "verified"


def test_build_says_what_to_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["build", "--target", "rtx40"]) == 4
    monkeypatch.setenv("MUTOSCOPE_CACHE", "/engines")
    assert cli.main(["build", "--target", "rtx40"]) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("mutoscope: error: there is no folder for the engine cache: this user has no home folder")
    assert second.startswith("mutoscope: error: there is no folder for the key that signs engines")
    assert "Set HOME or XDG_DATA_HOME to" in second
