"""A result made by hand: two implementations of one case, ours four times as fast."""

from __future__ import annotations

from typing import Any

import msgspec
from mutoscope_bench.result import Noise, RatioRow, Result, Row, Series, figures

MACHINE = {"cpu": "a CPU", "cores": 2, "gpus": [], "memory_bytes": 8 * 10**9, "system": "Linux x86_64",
           "python": "3.11", "packages": {"numpy": "2"}}  # fmt: skip
OURS = {"implementation": "mutoscope onnxruntime", "precision": "int8"}
THEIRS = {"implementation": "diffusers", "precision": "fp32"}
CLIP = {"text_encoder": 0.02, "step": 0.05, "denoiser": 0.4, "decode": 0.5, "first_frame": 0.6, "encode": 0.08}


def result(factor: float = 1.0, peak_rss_bytes: int = 2 * 10**8, **changes: Any) -> Result:
    """`factor` makes every time of ours longer."""
    rows = [
        Row(case="default-clip", stage=stage, **names, **figures([seconds * slow * more for more in (1.0, 1.01, 1.02)]))
        for names, slow in ((OURS, factor), (THEIRS, 4.0))
        for stage, seconds in CLIP.items()
    ]
    for names, slow, error in ((OURS, factor, 0.01), (THEIRS, 4.0, None)):
        seconds = figures([1.0 * slow, 1.01 * slow, 1.02 * slow])
        rows.append(Row(case="default-clip", stage="whole_run", **names, **seconds, peak_rss_bytes=peak_rss_bytes,
                        relative_error=error, psnr_db=error and 41.8, output_sha256="0" * 64))  # fmt: skip
    rows.append(
        Row(case="wan-vae", stage=None, implementation="openvino", precision=None, note="needs <openvino> & co")
    )
    ratio = RatioRow(case="default-clip", stage="whole_run", **OURS, against="diffusers", against_precision="fp32",
                     ratio=4.0, low=3.9, high=4.2)  # fmt: skip
    series = [
        Series(case="default-clip", **names, step_s=(0.06, 0.05, 0.05), memory=((0.02, 10**7), (1.5, 10**8)))
        for names in (OURS, THEIRS)
    ]  # fmt: skip
    whole = Result(
        schema_version=1, mutoscope="0", started="2026-01-01T00:00:00+00:00", scenario="SingleStream", machine=MACHINE,
        settings={"threads": 2, "quick": False, "energy": "energy: none here", "request": {}},
        noise=Noise(quiet=True, reasons=(), pulse_spread=0.01, others_cpu_share=0.0, load_average_before=0.1),
        reference={"default-clip": "diffusers fp32"}, rows=tuple(rows), ratios=(ratio,), series=tuple(series),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)
