"""The command line in this process, on a bundle of four graphs whose sessions are made up here; nothing is computed."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import mutoscope.commands.generate
import mutoscope.planning.execution
import numpy as np
import psutil
import pytest
import tokenizers
from mutoscope import cli
from mutoscope.bundle.bundle import (
    FORMAT_VERSION,
    Bundle,
    Defaults,
    Demonstration,
    Geometry,
    Graph,
    GraphTensor,
    Manifest,
    Provenance,
    Text,
    write_manifest,
)
from mutoscope.commands.arguments import Parser, add_fields, given
from mutoscope.errors import CancelledError, NumericalError, OutOfMemoryError, OutputError
from mutoscope.request import OutputOptions, RuntimeOptions, VideoRequest
from mutoscope_engines.session import Backend, Binding, Feeds, Session, SessionOptions

SIZES = {
    "text_encoder": 5, "denoiser": 11, "vae_features_first": 13, "vae_features_next": 19, "vae_decoder_first": 17,
    "vae_decoder_next": 23,
}  # fmt: skip
HEIGHT, WIDTH = 32, 48


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    graphs = []
    for role, size in SIZES.items():
        (root / role).mkdir(parents=True)
        (root / role / "model.onnx").write_bytes(b"x" * size)
        tensors = (GraphTensor(name=f"of_{role}", dtype="float32", shape=(1, "L")),)
        caches = tuple(GraphTensor(name=f"next_cache_{i}", dtype="float32", shape=("h",)) for i in range(3))
        graphs.append(
            Graph(role=role, precision="fp32", file=f"{role}/model.onnx", inputs=tensors, outputs=tensors + caches)
        )
    words = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "circle": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        family="wan",
        provenance=Provenance(
            checkpoint="someone/model", license="Apache-2.0", attribution="by someone", exported_by="a test", files={}
        ),
        geometry=Geometry(
            latent_channels=4,
            vae_scale_factor_spatial=8,
            vae_scale_factor_temporal=4,
            patch_size=(1, 2, 2),
            max_patches=8,
            vae_decoder_halo=1,
        ),
        text=Text(max_sequence_length=8, width=4, pad_token_id=0),
        defaults=Defaults(
            height=HEIGHT,
            width=WIDTH,
            num_frames=5,
            num_inference_steps=3,
            guidance_scale=3.0,
            fps=8,
            negative_prompt="",
            scheduler="euler",
        ),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        graphs=tuple(graphs),
        files={},
        demonstration=Demonstration(pattern="a circle", description="a circle"),
    )
    write_manifest(root, manifest)
    return root


class FakeTensor:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def row(self, index: int) -> "FakeTensor":
        return FakeTensor(self.values[index])

    def numpy(self) -> np.ndarray:
        return self.values


class FakeSession(Session):
    """Grey frames, whatever it is fed; or the error that a test put into `failure`."""

    failure: BaseException | None = None

    def __init__(self, role: str) -> None:
        self.role = role

    def bind(self) -> Binding:
        return FakeBinding(self)

    def compute(self, feeds: Feeds) -> dict[str, Any]:
        if self.role == "vae_decoder_next" and FakeSession.failure is not None:
            raise FakeSession.failure
        frames = {"vae_decoder_first": 1, "vae_decoder_next": 4}.get(self.role, 0)
        outputs = {
            "text_encoder": {"prompt_embeds": np.zeros((2, 8, 4), np.float32)},
            "vae_features_first": {"features": np.zeros(1, np.float32)},
            "vae_features_next": {"features": np.zeros(1, np.float32)},
            "denoiser": {"next_state": feeds.get("state"), "velocity_peak": np.float32(1)},
        }.get(self.role, {"frames": np.full((frames, HEIGHT, WIDTH, 3), 128, np.uint8)})
        return {
            name: value if isinstance(value, FakeTensor) else FakeTensor(np.asarray(value))
            for name, value in outputs.items()
        }

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class FakeBinding(Binding):
    def __init__(self, session: FakeSession) -> None:
        self.session, self.fed = session, {}

    def run(self, feeds: Feeds) -> dict[str, Any]:
        self.fed |= feeds
        return self.session.compute(self.fed)

    def close(self) -> None: ...


class FakeBackend(Backend):
    name = "fake"
    opened: list[str]

    def __init__(self) -> None:
        self.opened = []

    def unavailable_because(self) -> str | None:
        return None

    def version(self) -> str:
        return "fake 1"

    def supports(self, precision: str) -> bool:
        return True

    def open(self, graph: Path, options: SessionOptions) -> Session:
        self.opened.append(graph.parent.name)
        return FakeSession(graph.parent.name)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setattr(mutoscope.planning.execution, "choose_backend", lambda *_: (fake, "fp32", []))
    monkeypatch.setattr(FakeSession, "failure", None)
    monkeypatch.chdir(tmp_path)
    return fake


def generate(bundle: Path, *arguments: str) -> int:
    return cli.main(["generate", "--bundle", str(bundle), *arguments])


def test_json_is_one_object_with_plan_times_memory_and_output(bundle, backend, capsys):
    assert generate(bundle, "a circle", "-o", "out.npy", "--seed", "-5", "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert list(result) == ["plan", "times_s", "peak_memory_bytes", "output"]
    assert (result["plan"]["prompt"], result["plan"]["seed"], result["plan"]["num_frames"]) == ("a circle", -5, 5)
    times = result["times_s"]
    assert list(times) == ["load", "text_encoder", "denoiser", "vae_decoder", "write", "total"]
    assert min(times.values()) >= 0
    assert sum(times.values()) - times["total"] <= times["total"] + 1e-3
    assert result["peak_memory_bytes"] > 1e6
    content = Path("out.npy").read_bytes()
    assert result["output"] == {"path": "out.npy", "sha256": sha256(content).hexdigest(), "bytes": len(content)}
    assert np.load("out.npy").shape == (5, HEIGHT, WIDTH, 3)
    assert err.startswith("mutoscope: wrote out.npy, seed -5") and err.count("\n") == 1


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

    monkeypatch.setattr(mutoscope.commands.generate, "write_video", refuse)
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
    assert backend.opened == []
    assert os.listdir() == ["bundle"]


def test_explain_in_json_is_the_plan_alone(bundle, backend, capsys):
    assert generate(bundle, "a circle", "--explain", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["plan"]
    assert result["plan"]["timesteps"][0] == 1000
    assert backend.opened == []


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
        (["a circle", "-o", ""], "'' names no file"),
        (["a circle", "-o", "out.avi"], "'.avi'; a video can end with .mp4"),
        (["a circle", "-o", "missing/out.mp4"], "there is no folder missing"),
    ],
)
def test_wrong_usage_is_one_line_on_standard_error_and_exit_code_2(bundle, backend, capsys, arguments, message):
    assert generate(bundle, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mutoscope: error: ") and err.count("\n") == 1
    assert message in err
    assert backend.opened == []
    assert os.listdir() == ["bundle"]


def test_a_wrong_output_is_refused_before_the_bundle_is_looked_at(capsys, tmp_path):
    assert generate(tmp_path / "missing", "a circle", "-o", "out.avi") == 2
    assert generate(tmp_path / "missing", "a circle", "-o", str(tmp_path / "out.mp4")) == 3


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (NumericalError("step 1 gave nan"), 6, "mutoscope: error: step 1 gave nan\n"),
        (OutOfMemoryError("too large"), 5, "mutoscope: error: too large\n"),
        (MemoryError(), 5, "mutoscope: error: out of memory"),
        (CancelledError("stopped\nby someone"), 130, "mutoscope: error: stopped by someone\n"),
        (KeyboardInterrupt(), 130, "mutoscope: interrupted\n"),
    ],
)
def test_each_failure_has_its_code_and_leaves_no_file(bundle, backend, capsys, monkeypatch, failure, code, message):
    monkeypatch.setattr(FakeSession, "failure", failure)
    assert generate(bundle, "a circle", "-o", "out.mp4", "--json") == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and "Traceback" not in err
    assert os.listdir() == ["bundle"]


@pytest.mark.parametrize("output", ["out.mp4", "out.gif", "frames/", "empty/"])
@pytest.mark.parametrize("number", [signal.SIGINT, *cli.ENDING_SIGNALS])
def test_a_signal_leaves_no_partial_file(bundle, backend, capsys, monkeypatch, number, output):
    compute = FakeSession.compute

    def compute_and_signal(self, feeds):
        if self.role == "vae_decoder_next":
            os.kill(os.getpid(), number)
        return compute(self, feeds)

    monkeypatch.setattr(FakeSession, "compute", compute_and_signal)
    os.mkdir("empty")
    assert generate(bundle, "a circle", "-o", output) == 130
    assert capsys.readouterr().err == "mutoscope: interrupted\n"
    assert sorted(os.listdir()) == ["bundle", "empty"] and os.listdir("empty") == []


def test_every_parameter_is_a_flag_with_its_help_and_type():
    parser = Parser("x", "")
    kinds = (VideoRequest, RuntimeOptions, OutputOptions)
    for kind in kinds:
        add_fields(parser, kind, skip=["prompt"])
    text = " ".join(parser.format_help().split())
    for kind in kinds:
        for field in fields(kind):
            if field.name != "prompt":
                assert f"--{field.name.replace('_', '-')} " in text
                assert field.metadata["help"] in text
    namespace = parser.parse(["--seed", "3", "--guidance-scale", "4", "--codec", "av1"])
    assert given(namespace, VideoRequest) == {"seed": 3, "guidance_scale": 4.0}
    assert type(namespace.guidance_scale) is float
    assert given(namespace, OutputOptions) == {"codec": "av1"}
    assert given(namespace, RuntimeOptions) == {}


def test_inspect_shows_where_the_weights_come_from_and_what_is_in_it(bundle, capsys):
    assert cli.main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    for fact in ("someone/model", "Apache-2.0", "by someone", "wan", "11 bytes", "3 caches", "[1, L]"):
        assert fact in text
    assert "next_cache" not in text


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


def test_inspect_in_json_is_the_manifest(bundle, capsys):
    assert cli.main(["inspect", str(bundle), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["manifest"] == json.loads((bundle / "manifest.json").read_text())
    assert result["sha256"] == sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def test_verify_names_every_file(bundle, capsys):
    assert cli.main(["verify", str(bundle)]) == 0
    out = capsys.readouterr().out
    for name in Bundle.open(bundle).manifest.files:
        assert f"ok  {name}\n" in out


def test_verify_refuses_a_changed_file_with_exit_code_3(bundle, capsys):
    (bundle / "denoiser" / "model.onnx").write_bytes(b"y" * SIZES["denoiser"])
    assert cli.main(["verify", str(bundle)]) == 3
    out, err = capsys.readouterr()
    assert "ok  denoiser" not in out
    assert err.startswith("mutoscope: error: denoiser/model.onnx") and err.count("\n") == 1


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


def test_help_lists_the_commands_and_an_unknown_one_names_the_nearest(capsys):
    assert cli.main(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in cli.COMMANDS)
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["genrate"]) == 2
    assert "no command 'genrate'; did you mean generate?" in capsys.readouterr().err


def test_a_command_without_its_dependencies_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "export", ("missing_package.cli:main", "", "export"))
    assert cli.main(["export", "checkpoint", "bundle"]) == 4
    assert "pip install 'mutoscope[export]'" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["", "export"])
def test_a_missing_module_of_our_own_is_not_blamed_on_the_installation(monkeypatch, extra):
    monkeypatch.setitem(cli.COMMANDS, "export", ("mutoscope.missing:main", "", extra))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["export"])


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


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_speaks_of_no_python_objects(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"mutoscope {command}" in text and " object" not in text.replace("JSON object", "")
