"""A real tiny clip beside a peer that was made up: rows, ratios, errors, and what cannot be measured."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import mutoscope
import pytest
from mutoscope.errors import RequestError
from mutoscope_bench.cases import PROMPT, SEED
from mutoscope_bench.implementations import PEERS
from mutoscope_bench.options import Options
from mutoscope_bench.result import Result, read_result, write_result
from mutoscope_bench.run import run
from mutoscope_engines.onnxruntime.cpu import OnnxRuntimeCpu

PEER = """
import os, sys, time
import numpy as np
from mutoscope_bench.implementation import Implementation

class Fake(Implementation):
    name, variants, import_statement = "fake", ("slow", "broken", "dies", "unable"), "import json"

    def unavailable_because(self):
        return None

    def cannot(self, work, precision):
        return "does not do that" if precision == "unable" else None

    def load(self, work, precision):
        if precision == "broken":
            raise ValueError("these weights are not for me")

        def run():
            if precision == "dies":
                print("my last words", file=sys.stderr, flush=True)
                os._exit(3)
            time.sleep(0.05)
            np.save(work.result, np.zeros((work.plan["num_frames"], 32, 32, 3), np.uint8))
            stages = {"decode": 1.0, "first_frame": 1.75}
            return {"elapsed_s": 2.0, "stages": stages, "steps": [0.5, 0.5], "notes": {"first_frame": "all at once"}}

        return run
"""
REQUEST = {"height": 32, "width": 32, "guidance_scale": 1.0}
OURS = "mutoscope onnxruntime"


@pytest.fixture(scope="module")
def measured(wan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    folder = tmp_path_factory.mktemp("peer")
    (folder / "made_up_peer.py").write_text(PEER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEERS, "fake", "made_up_peer:Fake")
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        options = Options(
            cases=("default-clip",), against=("fake",), bundle=wan_bundle, precisions=("fp32",),
            backends=("onnxruntime",), rounds=3, threads=2, quick=True, request=REQUEST,
        )  # fmt: skip
        yield run(options, lambda text: None)


def test_every_stage_of_ours_has_its_seconds(measured: Result) -> None:
    stages = {row.stage: row for row in measured.rows if row.case == "default-clip" and row.implementation == OURS}
    assert set(stages) == {
        "import", "load_cold", "load_warm", "first_run", "text_encoder", "step", "denoiser", "decode", "first_frame",
        "encode", "whole_run",
    }  # fmt: skip
    assert len(stages["whole_run"].seconds) == 3 + 3  # alone, and beside the peer
    assert len(stages["step"].seconds) == 6 * 2
    parts = [stages[stage].seconds for stage in ("text_encoder", "denoiser", "decode", "encode")]
    sums = [sum(of_one_run) for of_one_run in zip(*parts, strict=True)]
    assert sums == pytest.approx(stages["whole_run"].seconds, rel=0.02)


def test_the_hash_is_that_of_the_frames_of_the_pipeline(measured: Result, wan_bundle: Path) -> None:
    (row,) = (
        row for row in measured.rows if (row.case, row.implementation, row.stage) == ("default-clip", OURS, "whole_run")
    )
    with mutoscope.Pipeline.load(wan_bundle, backend="onnxruntime", precision="fp32", threads=2) as pipeline:
        request = REQUEST | {"num_frames": 5, "num_inference_steps": 2}
        frames = pipeline.generate(PROMPT, seed=SEED, **request).frames
    assert row.output_sha256 == hashlib.sha256(frames.tobytes()).hexdigest()


def test_a_ratio_is_the_time_of_the_peer_over_ours(measured: Result) -> None:
    (ratio,) = (one for one in measured.ratios if one.case == "default-clip" and one.stage == "whole_run")
    (ours,) = (row for row in measured.rows if (row.case, row.implementation, row.stage) ==
               ("default-clip", OURS, "whole_run"))  # fmt: skip
    assert ratio.against == "fake"
    assert ratio.ratio == pytest.approx(2.0 / statistics.median(ours.seconds[3:]), rel=1e-3)
    assert ratio.low <= ratio.ratio <= ratio.high


def test_the_first_frame_of_ours_comes_before_the_file_and_a_peer_says_what_its_own_is(measured: Result) -> None:
    rows = {(row.implementation, row.stage): row for row in measured.rows}
    first, whole = (rows[OURS, stage] for stage in ("first_frame", "whole_run"))
    assert all(0 < one < other for one, other in zip(first.seconds, whole.seconds, strict=True))
    assert first.note is None
    assert (rows["fake", "first_frame"].median_s, rows["fake", "first_frame"].note) == (1.75, "all at once")
    assert rows["fake", "whole_run"].note is None
    assert "first_frame" in {ratio.stage for ratio in measured.ratios}


def test_the_error_is_against_ours_in_fp32_where_there_is_no_diffusers(measured: Result) -> None:
    assert measured.reference["default-clip"] == f"{OURS} fp32"
    (fake,) = (row for row in measured.rows if (row.case, row.implementation, row.stage) ==
               ("default-clip", "fake", "whole_run"))  # fmt: skip
    assert fake.relative_error == 1.0  # of black frames, whatever was expected


def test_what_fails_or_cannot_is_a_row_that_says_so(measured: Result) -> None:
    notes = {row.precision: row.note for row in measured.rows if row.implementation == "fake" and row.stage is None}
    assert "these weights are not for me" in (notes["broken"] or "")
    assert "exit code 3: my last words" in (notes["dies"] or "")
    assert notes["unable"] == "does not do that"


def test_steps_and_memory_over_time_are_there(measured: Result) -> None:
    (ours,) = (one for one in measured.series if one.implementation == OURS and one.case == "default-clip")
    assert len(ours.step_s) == 2
    times = [seconds for seconds, _ in ours.memory]
    assert times == sorted(times) and max(size for _, size in ours.memory) > 5 * 10**7


def test_the_result_survives_its_json(measured: Result, tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", measured)
    assert read_result(tmp_path / "a.json") == measured


def test_a_peer_on_the_cpu_is_not_compared_with_a_gpu(wan_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeCpu, "on_device", True)
    options = Options(
        cases=("default-clip",), against=("openvino-genai",), bundle=wan_bundle, precisions=("fp32",),
        backends=("onnxruntime",), rounds=1, threads=2, quick=True, request=REQUEST,
    )  # fmt: skip
    found = run(options, lambda text: None)
    (row,) = (row for row in found.rows if row.implementation == "openvino-genai")
    assert "runs on the CPU, ours on a GPU" in (row.note or "") and not found.ratios


def test_what_a_case_measured_is_kept_before_the_next_begins(wan_bundle: Path, tmp_path: Path) -> None:
    kept: list[Result] = []
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/bundle").symlink_to(wan_bundle)  # which the second case would otherwise make
    options = Options(
        cases=("default-clip", "wan-vae"), bundle=wan_bundle, precisions=("fp32",), backends=("onnxruntime",),
        rounds=1, threads=2, quick=True, request=REQUEST, models=tmp_path,
    )  # fmt: skip
    last = run(options, lambda text: None, kept.append)
    assert [{row.case for row in each.rows} for each in kept] == [{"default-clip"}, set(options.cases)]
    assert kept[-1].rows == last.rows


def test_nothing_measured_is_an_error_that_says_why(wan_bundle: Path) -> None:
    odd = Options(cases=("default-clip",), bundle=wan_bundle, precisions=("fp32",), request={"height": 31})
    with pytest.raises(RequestError, match=r"nothing could be measured.*height"):
        run(odd, lambda text: None)
    with pytest.raises(RequestError, match="needs a real model"):
        run(Options(cases=("mlperf-text-to-video",)), lambda text: None)
