"""The recipes of docs/scaling.md, as far as they run without the systems that they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutoscope.cli import main

TEXT = (Path(__file__).parents[1] / "docs/scaling.md").read_text("utf-8")
SMALL = {"prompt": "a red circle", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}


def recipe(language: str) -> str:
    [text] = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return str(text)


def write_jobs(folder: Path) -> None:
    lines = [json.dumps(SMALL | {"seed": seed}) + "\n" for seed in range(4)]
    (folder / "JOBS.jsonl").write_text("".join(lines))


def test_two_elements_of_the_slurm_array_share_the_work(tmp_path: Path) -> None:
    write_jobs(tmp_path)
    (tmp_path / "array.sh").write_text(recipe("bash"))
    (tmp_path / "mutoscope").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mutoscope "$@"\n')
    (tmp_path / "mutoscope").chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    running = [
        subprocess.Popen(
            ["bash", "array.sh"], cwd=tmp_path, env=os.environ | path | {"SLURM_ARRAY_TASK_ID": str(element)}
        )
        for element in (1, 2)
    ]
    assert [each.wait(120) for each in running] == [0, 0]
    receipts = [json.loads(line) for line in (tmp_path / "OUT/receipts.jsonl").read_text().splitlines()]
    assert [receipt["seed"] for receipt in receipts] == [0, 1, 2, 3]
    assert len(list((tmp_path / "OUT/videos").iterdir())) == 4


def test_the_job_for_kubernetes_is_yaml_whose_command_runs(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(recipe("yaml"))
    [container] = job["spec"]["template"]["spec"]["containers"]
    name, *arguments = container["command"]
    assert (job["kind"], name) == ("Job", "mutoscope")
    assert [mount["name"] for mount in container["volumeMounts"]] == ["share"]
    write_jobs(tmp_path)
    assert main([argument.replace("/share", str(tmp_path)) for argument in arguments]) == 0
