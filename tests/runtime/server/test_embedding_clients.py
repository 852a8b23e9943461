"""The clients of docs/embedding.md, each run as it stands there; all make the same video."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[3] / "docs/embedding.md"
PROGRAMS = {"py": [sys.executable, "-W", "ignore"], "js": ["node"], "bash": ["bash", "-em"]}
ENDINGS = {"py": "client.py", "js": "client.mjs", "bash": "client.sh"}


def command(folder: Path) -> None:
    """`mutoscope` on the path, as an installation has it. Signed files are never equal: a signature has its time."""
    script = folder / "mutoscope"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mutoscope "$@" --sign off\n')
    script.chmod(0o755)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the command line makes of the same request."""
    from mutoscope.cli import main

    path = tmp_path_factory.mktemp("expected") / "red.mp4"
    prompt = "a red circle moving right on a black background"
    assert main(["generate", prompt, "--seed", "7", "--num-frames", "5", "--sign", "off", "-o", str(path)]) == 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_client_makes_a_video(language: str, tmp_path: Path, expected: str):
    program = PROGRAMS[language]
    for needed in [program[0], *(["curl"] if language == "bash" else [])]:
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    [code] = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    command(tmp_path)
    (tmp_path / ENDINGS[language]).write_text(code)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*program, ENDINGS[language]], cwd=tmp_path, env=environment, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((tmp_path / "red.mp4").read_bytes()).hexdigest() == expected
    if language == "bash":
        assert '"state": "completed"' in (tmp_path / "events.txt").read_text().splitlines()[-2]
