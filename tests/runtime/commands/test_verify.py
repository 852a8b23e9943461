"""`mutoscope verify` checks each file of a bundle, or the videos of receipts, which it can make again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope import cli
from mutoscope.bundle.bundle import Bundle
from mutoscope_engines.testing import FakeBackend, Function, only_backends

from tests.runtime.commands.functions import FUNCTIONS, HEIGHT, WIDTH


def test_verify_names_every_file(bundle, capsys):
    assert cli.main(["verify", str(bundle)]) == 0
    out = capsys.readouterr().out
    for name in Bundle.open(bundle).manifest.files:
        assert f"ok  {name}\n" in out


def test_verify_refuses_a_changed_file_with_exit_code_3(bundle, capsys):
    denoiser = bundle / "denoiser" / "model.onnx"
    denoiser.write_bytes(b"y" * denoiser.stat().st_size)
    assert cli.main(["verify", str(bundle)]) == 3
    out, err = capsys.readouterr()
    assert "ok  denoiser" not in out
    assert err.startswith("mutoscope: error: denoiser/model.onnx") and err.count("\n") == 1


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    """With a name that options can have, as a receipt's do."""
    fake = FakeBackend(FUNCTIONS, name="onnxruntime")
    monkeypatch.chdir(tmp_path)
    with only_backends(fake):
        yield fake


@pytest.fixture
def receipts(bundle: Path, backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> Path:
    """The list of a batch of one video, whose container must be decoded."""
    Path("jobs.jsonl").write_text('{"prompt": "a circle", "seed": 3}')
    flags = ["--bundle", str(bundle), "--ending", ".webm", "--codec", "vp9", "--precision", "fp32"]
    assert cli.main(["batch", "jobs.jsonl", "out", *flags]) == 0
    capsys.readouterr()
    return Path("out/receipts.jsonl")


def test_the_video_of_a_receipt_is_checked_and_made_again_bit_for_bit(receipts: Path, capsys):
    assert cli.main(["verify", str(receipts)]) == 0
    assert "is the file that was made" in capsys.readouterr().out
    assert cli.main(["verify", "out", "--remake"]) == 0
    out = capsys.readouterr().out
    assert "is made again bit for bit" in out and "1 video matches its receipt" in out


def grey(value: int) -> dict[str, Function]:
    def frames(count: int, role: str) -> Function:
        made = FUNCTIONS[role]

        def decode(**fed: Any) -> dict[str, Any]:
            return {**made(**fed), "frames": np.full((count, HEIGHT, WIDTH, 3), value, np.uint8)}

        return decode

    return {
        **FUNCTIONS,
        **{role: frames(count, role) for role, count in {"vae_decoder_first": 1, "vae_decoder_next": 4}.items()},
    }


@pytest.mark.parametrize(
    ("made_in", "code", "words"),
    [("fp32", 3, "differs by"), ("bf16", 0, "between bf16 and fp32 no bound is known")],
)
def test_a_remake_that_differs_is_held_to_the_bound_of_its_precision(receipts, backend, capsys, made_in, code, words):
    backend.graphs = grey(200)
    facts = json.loads(receipts.read_text())
    facts["runtime"]["precision"] = made_in
    receipts.write_text(json.dumps(facts))
    assert cli.main(["verify", str(receipts), "--remake", "--precision", "fp32"]) == code
    out, err = capsys.readouterr()
    assert words in out + err
    assert ("it must be at least 45 dB" in err) == (code == 3)


def test_a_changed_video_ends_with_exit_code_3(receipts: Path, capsys):
    next(Path("out/videos").iterdir()).write_bytes(b"other")
    assert cli.main(["verify", str(receipts)]) == 3
    assert "was changed after it was made" in capsys.readouterr().err


def test_flags_that_do_not_fit_what_is_verified_are_refused(receipts: Path, bundle: Path, capsys):
    assert cli.main(["verify", str(bundle), "--remake"]) == 2
    assert "only the video of a receipt" in capsys.readouterr().err
    assert cli.main(["verify", str(receipts), "--threads", "1"]) == 2
    assert "add --remake" in capsys.readouterr().err
    assert cli.main(["verify", "jobs.txt"]) == 2
    assert "cannot be verified" in capsys.readouterr().err
