"""Real libraries on CPUs of older classes than this one: what they find there, and that int8 is as exact on each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutoscope_engines.system.cpu_class import CpuClass, class_of
from mutoscope_engines.system.machine import cpu_flags

from benchmarks.cpu_mask import KEPT, cpu_info, environment, impossible_because

# Whether a sum of two large products saturates, which tells that ONNX Runtime finds no VNNI; then how far int8 is from
# float32, in the frames of a short video.
CODE = """
import sys
import numpy as np
import onnx
import onnxruntime
from mutoscope import Pipeline

product = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 23]> '
    'g (uint8[M,K] a, int8[K,N] b) => (int32[M,N] y) { y = MatMulInteger(a, b) }'
)
session = onnxruntime.InferenceSession(product.SerializeToString(), providers=["CPUExecutionProvider"])
(sums,) = session.run(None, {"a": np.full((4, 64), 255, np.uint8), "b": np.full((64, 64), 127, np.int8)})
videos = []
for precision in ("fp32", "int8"):
    with Pipeline.load(backend="onnxruntime", precision=precision, threads=1) as pipeline:
        request = {"num_frames": 5, "num_inference_steps": 4, "seed": 3}
        videos.append(pipeline.generate("a large red circle on a black background", **request).frames.astype(float))
exact, int8 = videos
print((sums == 255 * 127 * 64).all(), np.linalg.norm(int8 - exact) / np.linalg.norm(exact - exact.mean()))
"""


def saturates_and_error(variables: dict[str, str]) -> tuple[bool, float]:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    is_exact, error = done.stdout.split()
    return is_exact == "False", float(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cpu_mask")


@pytest.mark.parametrize("name", KEPT)
def test_int8_is_as_exact_on_a_cpu_of_each_class(name: CpuClass, folder: Path) -> None:
    if reason := impossible_because(name):
        pytest.skip(reason)
    saturates, error = saturates_and_error(environment(name, folder, ["onnxruntime"]))
    assert saturates == ("vnni" not in name)
    assert error < 1.25 * saturates_and_error({})[1]


@pytest.mark.parametrize("name", KEPT)
def test_proc_cpuinfo_says_the_same(name: CpuClass) -> None:
    if reason := impossible_because(name):
        pytest.skip(reason)
    flags = next(line for line in cpu_info(name).splitlines() if line.startswith("flags"))
    found = frozenset(flags.partition(":")[2].split())
    assert found <= cpu_flags()
    assert class_of(found) is name


def test_a_class_that_no_cpu_can_pass_for_is_refused() -> None:
    assert impossible_because(CpuClass.AMX) is not None
