"""`mutoscope doctor` shows what this machine and a bundle are like."""

from __future__ import annotations

import json
import os
import re
import sys

import mutoscope
import psutil
import pytest
from mutoscope import cli


def test_doctor_finds_faults_and_does_not_fail(bundle, capsys):
    (bundle / "denoiser" / "model.onnx").unlink()
    assert cli.main(["doctor", "--json", str(bundle)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mutoscope"] == mutoscope.__version__
    assert 1 <= facts["cpu"]["usable cores"] <= len(os.sched_getaffinity(0))
    assert facts["memory"]["total_bytes"] == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=1e-6
    )
    assert facts["backends"]["onnxruntime"].endswith("ready")
    assert "libx264" in facts["encoders"]["h264"]
    assert facts["bundle"]["state"].startswith("not usable: denoiser/model.onnx is missing")


def test_doctor_works_where_a_process_cannot_ask_for_its_cores(bundle, capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert cli.main(["doctor", "--json", str(bundle)]) == 0
    assert 1 <= json.loads(capsys.readouterr().out)["cpu"]["usable cores"] <= os.cpu_count()


def test_doctor_is_readable_too(bundle, capsys):
    assert cli.main(["doctor", str(bundle)]) == 0
    assert re.search(r"^  state +verified$", capsys.readouterr().out, re.MULTILINE)
