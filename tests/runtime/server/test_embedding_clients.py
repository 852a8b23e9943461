"""The clients of docs/embedding.md, each run as it stands there; all make the same video."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from mutoscope.output.frames import Frames

DOCUMENT = Path(__file__).parents[3] / "docs/embedding.md"
PROGRAMS = {"py": [sys.executable, "-W", "ignore"], "js": ["node"], "bash": ["bash", "-em"]}
ENDINGS = {"py": "client.py", "js": "client.mjs", "bash": "client.sh"}


def command(folder: Path) -> None:
    """`mutoscope` on the path, as an installation has it."""
    script = folder / "mutoscope"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mutoscope "$@"\n')
    script.chmod(0o755)


def frames_of(path: Path) -> Frames:
    """What a file shows; the bytes of signed files differ, because a signature has its time."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """What the command line makes of the same request."""
    from mutoscope.cli import main

    path = tmp_path_factory.mktemp("expected") / "red.mp4"
    prompt = "a red circle moving right on a black background"
    assert main(["generate", prompt, "--seed", "7", "--num-frames", "5", "-o", str(path)]) == 0
    return frames_of(path)


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_client_makes_a_video(language: str, tmp_path: Path, expected: Frames):
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
    np.testing.assert_array_equal(frames_of(tmp_path / "red.mp4"), expected)
    if language == "bash":
        assert '"state": "completed"' in (tmp_path / "events.txt").read_text().splitlines()[-2]
