"""Commands in a process of their own: what they import, their exit codes, and an output that is gone or full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import mutoscope
import pytest

SCRIPT = """
import sys
import mutoscope.cli
code = mutoscope.cli.main(sys.argv[1:])
print(code, [name for name in ("torch", "onnx", "mutoscope_export", "av") if name in sys.modules], file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_the_runtime_imports_no_torch_and_the_video_library_only_when_it_writes(bundle):
    assert run("-c", SCRIPT, "inspect", str(bundle)).stderr == "0 []\n"


def test_the_module_runs_and_hands_its_exit_code_to_the_shell(bundle):
    result = run("-m", "mutoscope", "verify", str(bundle.parent))
    assert (result.returncode, result.stdout) == (3, "")
    assert run("-m", "mutoscope", "--version").stdout == f"mutoscope {mutoscope.__version__}\n"


def test_a_reader_that_goes_away_causes_no_traceback(bundle):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-m", "mutoscope", "inspect", str(bundle)]
    result = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    "arguments", [["inspect"], ["inspect", "--json"], ["verify"], ["verify", "--help"], ["doctor"]]
)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_2(bundle, arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "mutoscope", *arguments, str(bundle)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    message = f"mutoscope: error: standard output cannot be written: {os.strerror(errno.ENOSPC)}; send it elsewhere\n"
    assert (result.returncode, result.stderr) == (2, message)
