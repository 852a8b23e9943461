"""One command makes all of the built-in model anew, in order, and says what failed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutoscope_export.demo.make import BUNDLE, CHECKPOINT

from benchmarks import builtin_model
from benchmarks.builtin_model import JUDGES, WRITERS


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was done: exports, and modules with their arguments. Judges of int8 miss their goal."""
    done: list[list[str]] = []

    def run(command, **_):
        done.append(command[2:])
        return SimpleNamespace(returncode=int("int8" in command))

    monkeypatch.setattr(builtin_model.subprocess, "run", run)
    monkeypatch.setattr(builtin_model, "export_checkpoint", lambda *paths, **_: done.append(["export", *paths[:2]]))
    return done


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["builtin_model", *arguments])
    return builtin_model.main()


def test_the_bundle_is_made_then_judged_then_shown_and_a_missed_goal_stops_nothing(ran, monkeypatch, capsys) -> None:
    assert called(monkeypatch) == 1
    assert ran == [
        ["export", CHECKPOINT, BUNDLE],
        *([str(each) for each in command] for command in (*JUDGES, *WRITERS)),
    ]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "--precision int8" in told[0]


def test_training_comes_first_and_exports_itself(ran, monkeypatch) -> None:
    called(monkeypatch, "--train", "work", "--start-from", "checkpoint")
    assert ran[0] == ["mutoscope_export.demo.make", "--work", "work", "--start-from", "checkpoint"]
    assert all(command[0].startswith("benchmarks.") for command in ran[1:])


def test_flags_of_training_without_it_are_refused(ran, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        called(monkeypatch, "--start-from", "checkpoint")
    assert "--start-from checkpoint" in capsys.readouterr().err and not ran


@pytest.mark.parametrize("command", [*JUDGES, *WRITERS], ids=lambda command: Path(command[-1]).stem)
def test_each_command_is_a_module_and_replaces_a_committed_file(command) -> None:
    module, *arguments = command
    assert find_spec(module)
    assert all(argument.exists() for argument in arguments if isinstance(argument, Path))
