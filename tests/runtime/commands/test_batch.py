"""`mutoscope batch` in this process: what it makes, says to a person and to a program, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope import cli
from mutoscope.bulk import worker
from mutoscope.commands import batch as command

Run = Callable[..., int]


@pytest.fixture
def run(bundle: Path, backend: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(worker, "WAIT_S", 0.01)

    def with_jobs(*jobs: Any, flags: tuple[str, ...] = (), ending: str = ".npy") -> int:
        Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs), "utf-8")
        return cli.main(["batch", "jobs.jsonl", "out", "--bundle", str(bundle), "--ending", ending, *flags])

    return with_jobs


TWO = {"prompt": "a circle", "id": "one", "seed": 4, "repeat": 2}


def test_a_batch_makes_its_videos_and_the_same_command_again_does_nothing_and_says_so(run: Run, backend, capsys):
    assert run(TWO) == 0
    out, err = capsys.readouterr()
    assert out == "" and "2 of 2 videos are finished; their receipts are in" in err
    lines = Path("out/receipts.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [4, 5]
    fed = len(backend.fed)
    files = {path: path.stat().st_mtime_ns for path in Path("out/videos").iterdir()}
    assert run(TWO) == 0
    assert capsys.readouterr().err == "mutoscope: nothing to do: all 2 videos are in out\n"
    assert len(backend.fed) == fed and files == {path: path.stat().st_mtime_ns for path in Path("out/videos").iterdir()}
    assert Path("out/receipts.jsonl").read_text().splitlines() == lines
    assert run(TWO, {"prompt": "a circle", "seed": 9}) == 0
    assert "2 of 3 videos are in out already" in capsys.readouterr().err


def test_json_lines_tell_a_program_how_it_begins_what_is_done_and_how_it_ends(run: Run, capsys, monkeypatch):
    monkeypatch.setattr(command, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(command, "NOTE_EVERY_S", 0.0)
    assert run(TWO, flags=("--json",)) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0] == {"event": "start", "total": 2, "done": 0, "failed": 0, "running": 0, "videos_per_hour": None,
                         "left_s": None}  # fmt: skip
    done = [event for event in events if event["event"] == "done"]
    assert [(event["id"], event["repeat"], event["seed"]) for event in done] == [("one", 1, 4), ("one", 2, 5)]
    assert all(Path("out", event["file"]).is_file() for event in done)
    assert "progress" in {event["event"] for event in events}
    assert (events[-1]["event"], events[-1]["done"], events[-1]["exit_code"]) == ("end", 2, 0)
    assert "1 running" in err and "videos an hour" in err


def test_bad_lines_are_all_told_in_flags_of_the_jobs_and_nothing_is_made(run: Run, capsys):
    assert run({"prompt": "a circle", "height": 33}, {"promt": "x"}, {"prompt": "a circle"}) == 2
    err = capsys.readouterr().err
    assert "line 1: height" in err and "32" in err and "line 2:" in err and "line 3" not in err
    assert "has errors in 2 lines, so no video was made" in err
    assert not Path("out").exists()


def test_a_program_is_told_the_bad_lines_too(run: Run, capsys):
    assert run({"prompt": "a circle"}, {"promt": "x"}, flags=("--json",)) == 2
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (told["event"], told["line"]) == ("refused", 2) and "promt" in told["cause"]


def test_what_the_policy_refuses_is_told_by_line_and_nothing_is_made(run: Run, capsys, monkeypatch):
    Path("house_rules.py").write_text(
        "def policy(request):\n    return 'no squares' if 'square' in request.prompt else None"
    )
    monkeypatch.setattr("sys.path", list(sys.path))
    flags = ("--policy", "house_rules.policy")
    assert run({"prompt": "a circle"}, {"prompt": "a square"}, flags=flags) == 2
    err = capsys.readouterr().err
    assert "line 2: refused: no squares" in err and "line 1" not in err and not Path("out").exists()
    assert run({"prompt": "a circle"}, flags=flags) == 0
    assert run({"prompt": "a circle"}, flags=("--policy", "house_rules.none")) == 2


def test_a_video_that_fails_is_told_with_its_cause_and_exit_code_7(run: Run, backend, capsys):
    healthy = backend.graphs["denoiser"]
    backend.graphs["denoiser"] = lambda state, **_: {"next_state": state, "velocity_peak": np.float32(np.nan)}
    assert run({"prompt": "a circle", "id": "bad"}, flags=("--attempts", "2", "--json")) == 7
    out, err = capsys.readouterr()
    assert "line 1 (bad) failed 2 times: " in err and "remove out/failed" in err
    failed, end = [json.loads(line) for line in out.splitlines()][-2:]
    assert (failed["event"], failed["id"], failed["error"], failed["attempt"]) == ("failed", "bad", "NumericalError", 2)
    assert (end["failed"], end["exit_code"]) == (1, 7)
    assert json.loads(Path("out/failures.jsonl").read_text())["id"] == "bad"
    assert run({"prompt": "a circle", "id": "bad"}, flags=("--attempts", "2", "--quiet")) == 7  # still left alone
    assert capsys.readouterr() == ("", "")
    backend.graphs["denoiser"] = healthy
    assert run({"prompt": "a circle", "id": "bad"}, flags=("--attempts", "12")) == 0  # one more is allowed now
    assert Path("out/failures.jsonl").read_text() == ""


def test_the_last_of_ten_failures_is_told(run: Run, capsys):
    assert run(TWO) == 0
    key = json.loads(Path("out/receipts.jsonl").read_text().splitlines()[0])["key"]
    Path("out/receipts", f"{key}.json").unlink()
    for attempt in range(1, 11):
        Path("out/failed", f"{key}.{attempt}.json").write_text(json.dumps({"cause": f"cause {attempt}"}))
    capsys.readouterr()
    assert run(TWO) == 7
    assert "failed 10 times: cause 10" in capsys.readouterr().err


def test_a_full_disk_ends_the_batch_with_exit_code_2_and_nothing_half_written(run: Run, capsys, monkeypatch):
    real = os.link

    def full(source: Any, target: Any) -> None:
        if "videos" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "link", full)
    assert run(TWO) == 2
    assert "there is no space left" in capsys.readouterr().err
    assert not [path for folder in ("making", "claims", "videos") for path in Path("out", folder).iterdir()]
    monkeypatch.undo()


def test_several_workers_get_their_share_and_the_folder_is_theirs(run: Run, monkeypatch, capsys):
    seen: list[Any] = []

    def workers(batch: Any, store: Any, watch: Any) -> None:
        seen.append(batch)
        watch()

    monkeypatch.setattr(command, "run_workers", workers)
    monkeypatch.setattr("mutoscope.bulk.options.usable_cores", lambda: 4)
    assert run(TWO, flags=("--workers", "2", "--threads", "2")) == 0
    assert seen[0].runtime.threads == 1 and seen[0].options.workers == 2
    assert "0 of 2 videos are finished" in capsys.readouterr().err


def test_another_kind_of_file_in_the_same_folder_is_refused(run: Run, capsys):
    assert run(TWO) == 0
    assert run(TWO, ending=".gif") == 2
    assert "was begun with ending '.npy', not '.gif'" in capsys.readouterr().err
    assert run(TWO, flags=("--lease", "0")) == 2
    assert "--lease" in capsys.readouterr().err
