"""`mutoscope bench`: what is refused before anything is measured, and the exit code of a regression."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mutoscope.cli import main
from mutoscope.errors import OutputError
from mutoscope_bench import command as bench
from mutoscope_bench import machine_facts
from mutoscope_bench.result import Result, read_result, write_result

from tests.bench.results import MACHINE, result


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bench.Options]:
    """Takes the place of measuring; holds the options that it was given."""
    given: list[bench.Options] = []

    def run(options: bench.Options, tell: object, keep: Callable[[Result], object]) -> Result:
        given.append(options)
        settings = options.settings() | {"energy": "energy: none here"}
        measured = result(settings=settings, scenario=options.scenario)
        keep(measured)
        return measured

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(machine_facts, "describe", lambda: MACHINE)
    return given


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--case", "wan-vea"], "did you mean wan-vae?"),
        (["--against", "diffuser"], "did you mean diffusers?"),
        (["--backend", "onnx"], "there is no backend 'onnx'"),
        (["--precision", "fp23"], "there is no precision 'fp23'; did you mean fp32?"),
        (["--scenario", "Server"], "there is no scenario 'Server'"),
        (["--rounds", "0"], "rounds must be 1 to"),
        (["--json", "none/a.json"], "there is no folder none"),
        (["--compare", "none.json"], "cannot be read"),
        (["--num-frames", "many"], "a whole number"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_measured(
    measured: list[bench.Options], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["bench", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not measured


def test_parameters_of_a_request_and_of_a_pipeline_are_passed_on(measured: list[bench.Options]) -> None:
    assert main(["bench", "--num-inference-steps", "4", "--threads", "1", "--memory-limit", "8GB"]) == 0
    (options,) = measured
    assert options.request == {"num_inference_steps": 4}
    assert (options.threads, options.runtime) == (1, {"memory_limit": 8_000_000_000})


def test_a_comparison_takes_the_cases_of_the_peers_and_a_bundle_its_own_clip(measured: list[bench.Options]) -> None:
    for flags in ([], ["--against", "all"], ["some-bundle", "--against", "diffusers"], ["--against", "openvino,all"]):
        main(["bench", *flags])
    alone, compared, own, named = measured
    assert named.against == compared.against
    assert alone.cases == own.cases == ("default-clip",)
    assert set(compared.cases) == {"default-clip", "wan-1.3b-width", "wan-1.3b", "wan-vae"}
    assert "openvino" in compared.against


def test_result_and_report_are_written(measured: list[bench.Options], tmp_path: Path) -> None:
    assert main(["bench", "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    assert read_result(tmp_path / "a.json").machine == MACHINE
    assert "Mutoscope bench" in (tmp_path / "a.html").read_text("utf-8")


@pytest.mark.parametrize(("factor", "code", "said"), [(1.0, 0, "nothing got slower"), (0.5, 1, "got worse")])
def test_the_gate_fails_when_something_got_slower(
    measured: list[bench.Options],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    code: int,
    said: str,
) -> None:
    """`factor` is how long ours took before."""
    before = result(factor, settings=bench.Options(cases=(), threads=2).settings() | {"energy": ""})
    write_result(tmp_path / "old.json", before)
    assert main(["bench", "--threads", "2", "--compare", str(tmp_path / "old.json")]) == code
    assert said in capsys.readouterr().out


def test_the_gate_refuses_another_machine(
    measured: list[bench.Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path / "old.json", result(machine=MACHINE | {"cpu": "another CPU"}))
    assert main(["bench", "--compare", str(tmp_path / "old.json")]) == 2
    assert "another machine" in capsys.readouterr().err
    assert not measured


@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no folder that takes no file")
@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_a_place_that_takes_no_file_is_refused_before_anything_is_measured(
    measured: list[bench.Options], capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(["bench", flag, "/proc/nope"]) == 2
    assert "/proc/nope cannot be written" in capsys.readouterr().err
    assert not measured


def test_a_report_that_cannot_be_written_after_all_costs_no_table(
    measured: list[bench.Options], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, result: Result) -> None:
        raise OutputError(f"{path} cannot be written: no space left")

    monkeypatch.setattr(bench, "write_report", full)
    assert main(["bench", "--html", str(tmp_path / "a.html")]) == OutputError.exit_code
    told = capsys.readouterr()
    assert "SingleStream" in told.out
    assert "no space left" in told.err
