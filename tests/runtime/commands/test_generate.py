"""`mutoscope generate` in this process: what it writes and says, and what each failure leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import mutoscope.making
import numpy as np
import pytest
from mutoscope import cli
from mutoscope.errors import CancelledError, NumericalError, OutOfMemoryError, OutputError
from mutoscope.provenance.layers import LAYERS

from tests.runtime.commands.functions import HEIGHT, WIDTH


def generate(bundle: Path, *arguments: str) -> int:
    return cli.main(["generate", "--bundle", str(bundle), *arguments])


def test_json_is_one_object_with_plan_times_memory_and_output(bundle, backend, capsys):
    assert generate(bundle, "a circle", "-o", "out.npy", "--seed", "-5", "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert list(result) == ["plan", "times_s", "peak_memory_bytes", "output"]
    assert (result["plan"]["prompt"], result["plan"]["seed"], result["plan"]["num_frames"]) == ("a circle", -5, 5)
    times = result["times_s"]
    assert list(times) == ["load", "condition", "denoise", "decode", "write", "total"]
    assert min(times.values()) >= 0
    assert sum(times.values()) - times["total"] <= times["total"] + 1e-3
    assert result["peak_memory_bytes"] > 1e6
    content = Path("out.npy").read_bytes()
    hash_ = sha256(content).hexdigest()  # of an array, which holds no signature
    layers = result["output"].pop("layers")
    assert result["output"] == {"path": "out.npy", "sha256": hash_, "content_sha256": hash_, "bytes": len(content)} | {
        "sidecar": None
    }
    assert {name: layer["present"] for name, layer in layers.items()} == dict.fromkeys(LAYERS, False)
    assert np.load("out.npy").shape == (5, HEIGHT, WIDTH, 3)
    assert err.startswith("mutoscope: wrote out.npy, seed -5") and err.count("\n") == 1


def test_a_video_from_text_loads_no_library_for_pictures(bundle, backend, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)  # to import it would fail
    assert generate(bundle, "a circle", "-o", "out.mp4") == 0


@pytest.mark.parametrize(("flag", "instead"), [("--image", "Wan 2.2 TI2V-5B"), ("--last-image", "FLF2V-14B")])
def test_a_picture_for_a_model_that_takes_none_is_refused_by_its_flag(bundle, backend, capsys, flag, instead):
    assert generate(bundle, "a circle", flag, "first.png", "-o", "out.npy") == 2
    told = capsys.readouterr().err
    assert f"{flag} is not a parameter of this model, which takes: prompt, --negative-prompt. Leave it out" in told
    assert instead in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--video", "clip.mp4"), "--video is not a parameter of this bundle, which takes: prompt, --negative-prompt."),
        (("--strength", "0.5"), "--strength is for a video that is given, and there is none"),
        (("--extend", "clip.mp4"), "--extend is for models that take a picture"),
    ],
)
def test_a_clip_for_a_model_that_takes_none_is_refused_by_its_flag(bundle, backend, capsys, flags, told):
    assert generate(bundle, "a circle", *flags, "-o", "out.npy") == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("left_over", [False, True])
def test_the_hash_of_a_folder_is_that_of_what_sha256sum_prints(bundle, backend, capsys, left_over):
    if left_over:  # by a run that was killed
        Path("frames/.frames.4711.abcdef.tmp").mkdir(parents=True)
    assert generate(bundle, "a circle", "-o", "frames/", "--json") == 0
    output = json.loads(capsys.readouterr().out)["output"]
    listing = subprocess.run("sha256sum *", shell=True, cwd="frames", capture_output=True, check=True).stdout
    assert output["sha256"] == sha256(listing).hexdigest()
    assert output["bytes"] == sum(path.stat().st_size for path in Path("frames").glob("[!.]*"))


def test_without_json_nothing_is_written_to_standard_output(bundle, backend, capsys):
    assert generate(bundle, "a circle") == 0
    assert capsys.readouterr().out == ""
    assert Path("out.mp4").is_file()


def test_quiet_writes_nothing_at_all(bundle, backend, capsys):
    assert generate(bundle, "something else", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_notes_of_the_plan_go_to_standard_error(bundle, backend, capsys):
    assert generate(bundle, "something else", "-o", "out.gif") == 0
    assert re.match(r"mutoscope: note: .*demonstration model.*\n", capsys.readouterr().err)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_each_stage_and_keeps_the_last_line_alone(bundle, backend, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert generate(bundle, "a circle", "-o", "out.npy") == 0
    shown = [line.strip() for line in terminal.getvalue().split("\r")]
    assert shown[-1].startswith("mutoscope: wrote out.npy")
    stages = dict.fromkeys(re.match(r"[a-z ]*", line)[0].strip() for line in shown[:-1])
    assert [stage for stage in stages if stage] == [
        "checking the bundle", "encoding the prompt", "denoising", "decoding"
    ]  # fmt: skip


def test_a_video_that_cannot_be_written_is_given_up_at_once(bundle, backend, monkeypatch):
    closed = []
    monkeypatch.setattr(mutoscope.pipeline.FrameStream, "close", lambda self: closed.append(self))

    def refuse(path, chunks, *_, **__):
        next(chunks)
        raise OutputError("no space")

    monkeypatch.setattr(mutoscope.making, "write_file", refuse)
    assert generate(bundle, "a circle") == 2
    assert len(closed) == 1


def test_the_command_line_silences_the_encoder(bundle, backend, monkeypatch):
    monkeypatch.setenv("SVT_LOG", "")  # so that it is put back
    monkeypatch.delenv("SVT_LOG")
    assert generate(bundle, "a circle", "-o", "out.mp4", "--codec", "av1") == 0
    assert os.environ["SVT_LOG"] == "1"


def test_explain_prints_the_plan_and_opens_no_graph(bundle, backend, capsys):
    assert generate(bundle, "a circle", "--explain", "--height", "64") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line.strip())
    assert (lines["height"], lines["width"], lines["scheduler"], lines["fps"]) == ("64", "48", "euler", "8")
    assert backend.log == []
    assert os.listdir() == ["bundle"]


def test_explain_in_json_is_the_plan_alone(bundle, backend, capsys):
    assert generate(bundle, "a circle", "--explain", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["plan"]
    assert result["plan"]["timesteps"][0] == 1000
    assert backend.log == []


def test_a_prompt_may_begin_with_a_dash_and_a_negative_prompt_too(bundle, backend, capsys):
    arguments = ["--explain", "--json", "--negative-prompt=-blurry", "--", "-o --help"]
    assert generate(bundle, *arguments) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["prompt"], plan["negative_prompt"]) == ("-o --help", "-blurry")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a circle", "--height", "33"], "height must be a multiple of 16; got 33; nearest: 32, 48"),
        (["a circle", "--seed", "1.5"], "--seed: must be a whole number; got '1.5'"),
        (["a circle", "--guidance-scale", "much"], "--guidance-scale: must be a number; got 'much'"),
        (["a circle", "--scheduler", "eular"], "no scheduler 'eular'; did you mean euler? There are: unipc, euler"),
        (["a circle", "--codec", "mp3"], "no codec 'mp3'. There are: auto, h264"),
        (["a circle", "--sede", "1"], "no flag '--sede'; did you mean --seed?"),
        (["a circle", "--num-inference", "1"], "no flag '--num-inference'; did you mean --num-inference-steps?"),
        (["a circle", "--negative-prompt", "-x"], "a value that begins with a dash is written --flag=VALUE"),
        (["a", "circle"], "unexpected 'circle'; a text of several words needs quotes"),
        (["--", "-a", "-o"], "unexpected '-o'"),
        ([], "required: PROMPT"),
        (["a circle", "-o", ".mp4"], "'.mp4' is only an ending; give it a name, such as out.mp4"),
        (["a circle", "-o", ""], "'' does not name a file"),
        (["a circle", "-o", "out.avi"], "'.avi'; a video can end with .mp4"),
        (["a circle", "-o", "missing/out.mp4"], "there is no folder missing"),
    ],
)
def test_wrong_usage_is_one_line_on_standard_error_and_exit_code_2(bundle, backend, capsys, arguments, message):
    assert generate(bundle, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mutoscope: error: ") and err.count("\n") == 1
    assert message in err
    assert backend.log == []
    assert os.listdir() == ["bundle"]


def test_a_wrong_output_is_refused_before_the_bundle_is_looked_at(capsys, tmp_path):
    assert generate(tmp_path / "missing", "a circle", "-o", "out.avi") == 2
    assert generate(tmp_path / "missing", "a circle", "-o", str(tmp_path / "out.mp4")) == 3


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (NumericalError("step 1 gave nan"), 6, "mutoscope: error: step 1 gave nan\n"),
        (
            OutOfMemoryError("too large"),
            5,
            "mutoscope: error: too large; or ask for a smaller height, width or --num-frames\n",
        ),
        (MemoryError(), 5, "mutoscope: error: out of memory"),
        (CancelledError("stopped\nby someone"), 130, "mutoscope: error: stopped by someone\n"),
        (KeyboardInterrupt(), 130, "mutoscope: interrupted\n"),
    ],
)
def test_each_failure_has_its_code_and_leaves_no_file(bundle, backend, capsys, failure, code, message):
    def fail(**_: Any) -> dict[str, Any]:
        raise failure

    backend.graphs["vae_decoder_next"] = fail
    assert generate(bundle, "a circle", "-o", "out.mp4", "--json") == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and "Traceback" not in err
    assert os.listdir() == ["bundle"]


@pytest.mark.parametrize("output", ["out.mp4", "out.gif", "frames/", "empty/"])
@pytest.mark.parametrize("number", [signal.SIGINT, *cli.ENDING_SIGNALS])
def test_a_signal_leaves_no_partial_file(bundle, backend, capsys, number, output):
    decode = backend.graphs["vae_decoder_next"]

    def signal_and_decode(**feeds: Any) -> dict[str, Any]:
        os.kill(os.getpid(), number)
        return decode(**feeds)

    backend.graphs["vae_decoder_next"] = signal_and_decode
    os.mkdir("empty")
    assert generate(bundle, "a circle", "-o", output) == 130
    assert capsys.readouterr().err == "mutoscope: interrupted\n"
    assert sorted(os.listdir()) == ["bundle", "empty"] and os.listdir("empty") == []


def test_the_limits_that_inspect_shows_are_those_of_the_plan(bundle, backend, capsys):
    assert cli.main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    for name, flag in (("height", "--height"), ("width", "--width"), ("num_frames", "--num-frames")):
        more, multiple, most = map(
            int, re.search(rf"{name} +(?:(\d+) more than )?a multiple of (\d+), at most (\d+)", text).groups("0")
        )
        assert (most - more) % multiple == 0
        for value in (more + multiple, most):
            assert generate(bundle, "a circle", "--explain", "--quiet", flag, str(value)) == 0
        for value in (more + multiple + 1, most + multiple):
            assert generate(bundle, "a circle", "--explain", "--quiet", flag, str(value)) == 2
