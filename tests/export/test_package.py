"""Importing the package takes care of what Diffusers imports later."""

from __future__ import annotations

import json
import subprocess
import sys


def test_onnx_runtime_is_imported_without_telemetry_before_diffusers_can_import_it() -> None:
    code = """
import json, sys, mutoscope_export
from mutoscope_engines import telemetry
print(json.dumps([telemetry.states(), "diffusers" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], env={"CI": "1"}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [{"onnxruntime": "off"}, False]
