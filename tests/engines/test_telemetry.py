"""Libraries are imported without their telemetry, and the program around Mutoscope notices nothing of that.

What they send and write is seen from outside in tests/test_nothing_calls_home.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

VARIABLE = "ORT_DISABLE_TELEMETRY"
TOO_LATE = "left as it was: this program imported the library before Mutoscope did"


def run(code: str, **environment: str) -> Any:
    """What a new process found; `code` sets `found`. The environment of C is asked, which native code reads."""
    lines = [
        "import ctypes, json, os, sys",
        "getenv = ctypes.CDLL(None).getenv",
        "getenv.restype = ctypes.c_char_p",
        f"seen = lambda: (os.environ.get({VARIABLE!r}), (getenv({VARIABLE.encode()!r}) or b'').decode() or None)",
        code,
        "print(json.dumps(found))",
    ]
    environment = {"PATH": "", "CI": "1"} | environment  # in CI nothing is sent, whatever this test finds
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_the_environment_is_as_it_was_after_the_import_and_says_no_during_it(value: str | None) -> None:
    code = """
found = {"before": seen()}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            found["during"] = seen()
sys.meta_path.insert(0, Finder())
import mutoscope_engines.onnxruntime.cpu
found["after"] = seen()
"""
    found = run(code, **({} if value is None else {VARIABLE: value}))
    assert found == {"before": [value, value], "during": ["1", "1"], "after": [value, value]}


@pytest.mark.parametrize("broken", ["None", "type(sys)('onnxruntime')"])
def test_a_library_that_fails_to_import_leaves_the_environment_as_it_was(broken: str) -> None:
    code = f"""
from mutoscope_engines import telemetry
sys.modules["onnxruntime"] = {broken}
try:
    telemetry.onnxruntime()
except ImportError:
    found = {{"after": seen(), "states": telemetry.states()}}
"""
    assert run(code) == {"after": [None, None], "states": {}}


@pytest.mark.parametrize(
    ("first", "environment", "said"),
    [
        ("", {}, "off"),
        ("import onnxruntime", {VARIABLE: "1"}, "off"),
        ("import onnxruntime", {}, f"{TOO_LATE}; set {VARIABLE}=1 before that"),
    ],
)
def test_doctor_says_when_it_was_too_late(first: str, environment: dict[str, str], said: str) -> None:
    code = f"""
import contextlib, io
from mutoscope.cli import main
{first}
with contextlib.redirect_stdout(io.StringIO()) as output:
    assert main(["doctor", "--json"]) == 0
found = json.loads(output.getvalue())["telemetry"]
"""
    assert run(code, **environment) == {"onnxruntime": said}


def test_a_program_that_wants_openvino_telemetry_keeps_it() -> None:
    pytest.importorskip("openvino")
    code = """
import types
wanted = sys.modules["openvino_telemetry"] = types.ModuleType("openvino_telemetry")
wanted.Telemetry = lambda **given: types.SimpleNamespace(send_event=lambda *event: None)
from mutoscope_engines import telemetry
telemetry.openvino()
found = [sys.modules["openvino_telemetry"] is wanted, telemetry.states()]
"""
    kept, states = run(code)
    assert kept
    assert states == {"openvino": TOO_LATE}
