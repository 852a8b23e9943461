"""Videos of threads that outlive the main one, and of what runs at exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest

LATE = """
import atexit, sys, threading
import mutoscope

pipeline = mutoscope.Pipeline.load()

def make():
    if sys.argv[1] == "thread":
        threading.main_thread().join()
    video = pipeline.generate("a red circle moving right on a black background", num_frames=5, num_inference_steps=1)
    video.save(sys.argv[2])

atexit.register(make) if sys.argv[1] == "atexit" else threading.Thread(target=make).start()
"""


@pytest.mark.parametrize("when", ["thread", "atexit"])
@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_a_video_is_made_and_saved_after_the_main_thread_has_ended(tmp_path: Path, when: str, name: str) -> None:
    command = [sys.executable, "-c", LATE, when, tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with av.open(str(tmp_path / name)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
