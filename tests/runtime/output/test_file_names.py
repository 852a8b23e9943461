"""Output names that Windows would not make as they are written."""

from __future__ import annotations

import ntpath
import sys
from pathlib import Path

import pytest
from mutoscope.errors import OutputError
from mutoscope.output.file_names import refuse_reserved, reserved_because
from mutoscope.output.video import check_output

RESERVED = [
    *("CON", "con", "nul.mp4", "NUL .mp4", "aux.tar.gz", "COM1", "com9.gif", "LPT1.npy", "COM\xb9", "conin$"),
    *("out.mp4.", "out.mp4 ", "frames ", "..."),
    *("12:30.gif", "wan:final.webm", "what?.mp4", "a*b.mp4", 'say "hi".mp4', "a<b.mp4", "a|b.mp4", "tab\t.mp4"),
    *("out/CON/video.mp4", r"out\prn", "clips /out.mp4", r"C:\clips.\out.mp4", r"\\server\share\nul"),
]
FREE = [
    *(
        "out.mp4",
        ".hidden.mp4",
        "console.mp4",
        "com.mp4",
        "COM10",
        "nulls.gif",
        "\u6f22\u5b57.mp4",
        "a b.mp4",
        "a.b.mp4",
    ),
    *("../out.mp4", "./out.mp4", r"C:\clips\out.mp4", "C:/clips/out.mp4", r"\\server\share\a.mp4", "frames/", "f\\"),
]


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_refused_on_windows_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_reserved(name)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OutputError, match=r"cannot be written on Windows: .*\. Choose another name"):
        refuse_reserved(name)


@pytest.mark.parametrize("name", FREE)
def test_other_names_are_taken(name: str) -> None:
    assert reserved_because(name) is None


def test_a_letter_and_a_colon_alone_are_not_the_top_of_a_drive() -> None:
    assert "current folder" in (reserved_because("a:b.mp4") or "")


@pytest.mark.skipif(not hasattr(ntpath, "isreserved"), reason="Python before 3.13 does not know")
@pytest.mark.parametrize("name", [*RESERVED, *FREE])
def test_names_are_reserved_that_python_says_are(name: str) -> None:
    assert ntpath.isreserved(name.rstrip("/\\")) == (reserved_because(name) is not None)


def test_a_reserved_name_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "12:30.npy")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OutputError, match=r"'12:30\.npy' has a ':'"):
        check_output(tmp_path / "12:30.npy")
