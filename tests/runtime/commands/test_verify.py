"""`mutoscope verify` checks each file of a bundle."""

from __future__ import annotations

from mutoscope import cli
from mutoscope.bundle.bundle import Bundle


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
