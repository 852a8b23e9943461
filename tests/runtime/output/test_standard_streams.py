"""Every command runs without standard streams, and prints any text to any encoding."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mutoscope.cli import COMMANDS
from mutoscope.output.standard_streams import usable_streams

PROMPT = "a red circle moving right on a black background"
SMALL = ["--num-frames", "5", "--num-inference-steps", "1", "--seed", "1", "--backend", "onnxruntime"]
CLOSED = """
import os, sys
for descriptor in {closed}:
    os.close(descriptor)
os.execv(sys.executable, [sys.executable, *{program}, *sys.argv[1:]])
"""
TRIED = [
    ["generate", PROMPT, "--explain", "--json"],
    ["inspect"],
    ["verify"],
    ["doctor", "--json"],
]
EVERY_HELP = """
import json, sys
from mutoscope.cli import COMMANDS, main

codes = {}
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        codes[name] = end.code
with open(sys.argv[1], "w") as file:
    json.dump(codes, file)
"""
without = pytest.mark.parametrize("closed", [(2,), (0, 1, 2)], ids=["no standard error", "no streams"])


def run(
    *arguments: str, closed: tuple[int, ...] = (), program: tuple[str, ...] = ("-m", "mutoscope"), **variables: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    code = CLOSED.format(closed=closed, program=program)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=environment, timeout=120)


@without
@pytest.mark.parametrize("command", TRIED, ids=" ".join)
def test_a_command_runs_without_its_streams(command: list[str], closed: tuple[int, ...]) -> None:
    done = run(*command, closed=closed)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (done.stdout == b"") == (1 in closed)


@without
def test_every_command_gives_its_help_without_them(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """In one process, as each would take half a second to start."""
    done = run(str(tmp_path / "codes"), closed=closed, program=("-c", EVERY_HELP))
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads((tmp_path / "codes").read_text()) == dict.fromkeys(COMMANDS, 0)
    for name in COMMANDS:
        assert (f"usage: mutoscope {name}".encode() in done.stdout) == (1 not in closed)


def test_an_error_has_its_code_where_nobody_can_be_told() -> None:
    assert run("generate", PROMPT, "--height", "33", "--explain", closed=(2,)).returncode == 2
    assert run("no such command", closed=(0, 1, 2)).returncode == 2


@pytest.mark.parametrize("output", ["out.mp4", "frames/"])
def test_a_video_is_the_same_without_standard_error(tmp_path: Path, output: str) -> None:
    for name, closed in (("with", ()), ("without", (0, 1, 2))):
        (tmp_path / name).mkdir()
        done = run("generate", PROMPT, *SMALL, "--sign", "off", "-o", f"{tmp_path}/{name}/{output}", closed=closed)
        assert done.returncode == 0
    files = [path.relative_to(tmp_path / "with") for path in (tmp_path / "with").rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = f"""
import os
from mutoscope.cli import COMMANDS
from mutoscope.output.standard_streams import usable_streams
for descriptor in range(3):
    os.close(descriptor)
with usable_streams():
    with open({str(tmp_path / "file")!r}, "w") as file:
        file.write(str(file.fileno()))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "ascii:surrogateescape", "cp1252"])
def test_text_that_an_encoding_lacks_is_printed_as_numbers(encoding: str) -> None:
    done = run("generate", "一只猫 é", "--explain", "--quiet", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    line = done.stdout.splitlines()[0].decode(encoding.partition(":")[0])
    assert line.split(maxsplit=1) == ["prompt", "\\u4e00\\u53ea\\u732b " + ("\\xe9" if "ascii" in encoding else "é")]


@pytest.mark.parametrize("name", ["漢", os.fsdecode(b"b\xe9")])
@pytest.mark.parametrize("command", ["inspect", "verify", "doctor"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_bundle_may_lie_in_a_folder_of_any_name(tmp_path: Path, command: str, name: str, encoding: str) -> None:
    from mutoscope.builtin import bundle_path

    (tmp_path / name).symlink_to(bundle_path())
    done = run(command, str(tmp_path / name), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {"漢": "漢" if encoding == "utf-8" else "\\u6f22"}.get(name, "b\\udce9") in done.stdout.decode(encoding)


def test_the_caller_gets_its_streams_back(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", strict)
    monkeypatch.setattr(sys, "stderr", None)
    with usable_streams():
        print("漢")
        print("nowhere", file=sys.stderr)
    assert (sys.stdout, strict.errors, sys.stderr) == (strict, "strict", None)
    strict.flush()
    assert strict.buffer.getvalue() == b"\\u6f22\n"  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_standard_error_that_takes_nothing_costs_no_video(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mutoscope", "generate", PROMPT, *SMALL, "-o", tmp_path / "out.npy"]
    buffered = {"PYTHONUNBUFFERED": ""}  # so that Python has something to write when it ends
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **buffered}
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stderr=full, env=environment).returncode == 0
    assert np.load(tmp_path / "out.npy").shape == (5, 96, 96, 3)
