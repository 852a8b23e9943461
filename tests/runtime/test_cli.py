"""The commands are found and listed, and a missing one says what to do."""

from __future__ import annotations

import pytest
from mutoscope import cli


def test_help_lists_the_commands_and_an_unknown_one_names_the_nearest(capsys):
    assert cli.main(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in cli.COMMANDS)
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["genrate"]) == 2
    assert "no command 'genrate'; did you mean generate?" in capsys.readouterr().err


def test_a_command_without_its_dependencies_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "export", ("missing_package.cli:main", "", "export"))
    assert cli.main(["export", "checkpoint", "bundle"]) == 4
    assert "pip install 'mutoscope[export]'" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["", "export"])
def test_a_missing_module_of_our_own_is_not_blamed_on_the_installation(monkeypatch, extra):
    monkeypatch.setitem(cli.COMMANDS, "export", ("mutoscope.missing:main", "", extra))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["export"])


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_speaks_of_no_python_objects(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"mutoscope {command}" in text and " object" not in text.replace("JSON object", "")
