"""`mutoscope verify` tells of a video what it says of its origin, and `mutoscope provenance` whose key signs it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mutoscope import cli
from mutoscope.output.video import write_video
from mutoscope.provenance.keys import default_path, make_signer

from tests.runtime.clips import make_header
from tests.runtime.provenance.pictures import landscape


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("c2pa")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def video(tmp_path: Path, unsigned: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mutoscope.output.signing.is_available", lambda: True)
    return write_video(tmp_path / "out.mp4", [landscape(3)], make_header(3, 256, 320))


def told(capsys: pytest.CaptureFixture[str], *command: object, code: int = 0) -> tuple[str, str]:
    assert cli.main(list(map(str, command))) == code
    out, err = capsys.readouterr()
    return out, err


def test_a_video_is_told_layer_by_layer(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tag, watermark, signature, summary = told(capsys, "verify", video)[0].splitlines()
    assert tag.split(maxsplit=1) == ["tag", "says AI-generated"]
    assert watermark.startswith("watermark  found, ")
    assert signature.startswith("signature  as it was signed, by Mutoscope local, not verified, who is known here")
    assert summary == f"{video}: AI-generated, by its tag and watermark and signature"


def test_a_program_is_told_the_same_as_json(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "verify", video, "--json")[0])
    assert (found["path"], found["layers"]) == (str(video), ["tag", "watermark", "signature"])
    assert found["tag"] is True and found["watermark"]["found"] is True and found["watermark"]["frames"] == 3
    assert (found["signature"]["state"], found["signature"]["facts"]["made"]["seed"]) == ("trusted", 7)
    content = bytearray(video.read_bytes())
    content[-2000] ^= 1
    video.write_bytes(bytes(content))
    assert json.loads(told(capsys, "verify", video, "--json", code=3)[0])["signature"]["state"] == "invalid"
    (tmp_path / "note.txt").write_text("nothing")
    nothing = json.loads(told(capsys, "verify", tmp_path / "note.txt", "--json")[0])
    assert (nothing["layers"], nothing["tag"], nothing["watermark"]) == ([], False, None)
    assert "--json is only for a video or picture" in told(capsys, "verify", "--json", code=2)[1]


def test_a_changed_video_ends_with_exit_code_3(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(video.read_bytes())
    content[-2000] ^= 1
    video.write_bytes(bytes(content))
    out, err = told(capsys, "verify", video, code=3)
    assert "signature  does not fit" in out
    assert f"error: {video} is not as it was signed: assertion.bmffHash.mismatch" in err


def test_somebody_elses_video_is_confirmed_by_the_root_that_they_gave(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = told(capsys, "provenance", "keys", "--export-root", tmp_path / "root.pem")[0]
    assert f"key          {default_path()}\n" in shown and "root_sha256" in shown
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    assert "whom no certificate known here confirms" in told(capsys, "verify", video)[0]
    assert "who is known here" in told(capsys, "verify", video, "--trust", tmp_path / "root.pem")[0]


def test_a_file_without_any_layer_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("nothing")
    assert told(capsys, "verify", tmp_path / "note.txt")[0].endswith("nothing was found, which proves nothing\n")


def test_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be verified" in told(capsys, "verify", tmp_path / "none.mp4", code=2)[1]
    assert "root.pem cannot be read" in told(capsys, "verify", __file__, "--trust", tmp_path / "root.pem", code=2)[1]
    assert "--trust is only for" in told(capsys, "verify", "--trust", tmp_path / "root.pem", code=2)[1]


def test_keys_are_shown_once_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "provenance", "keys")[0].startswith("there is no key yet") and not default_path().exists()
    make_signer(default_path())
    assert "subject      CN=signer,O=Mutoscope local" in told(capsys, "provenance", "keys")[0]


def test_a_companys_chain_signs_from_then_on(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    company = make_signer(tmp_path / "company" / "signer.pem")
    assert isinstance(company.key, str)
    (tmp_path / "chain.pem").write_text(company.chain)
    (tmp_path / "key.pem").write_text(company.key)
    told(capsys, "provenance", "keys", "--chain", tmp_path / "chain.pem", "--key", tmp_path / "key.pem")
    assert make_signer(default_path()).chain == company.chain
    assert "whom no certificate known here confirms" in told(capsys, "verify", video)[0]  # of the key before


def test_a_chain_that_cannot_sign_leaves_the_key_as_it_was(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = make_signer(default_path())
    (tmp_path / "root.pem").write_text(own.root)  # a certificate for certificates
    (tmp_path / "key.pem").write_text(str(own.key))
    for chain, key, code, reason in [
        ("root.pem", "key.pem", 3, "does not belong to the key"),
        ("none.pem", "key.pem", 2, "none.pem cannot be read"),
    ]:
        command = ("provenance", "keys", "--chain", tmp_path / chain, "--key", tmp_path / key)
        assert reason in told(capsys, *command, code=code)[1]
    assert "belong together" in told(capsys, "provenance", "keys", "--key", tmp_path / "key.pem", code=2)[1]
    assert "thing to show 'key'" in told(capsys, "provenance", "key", code=2)[1]
    assert make_signer(default_path()).chain == own.chain


def test_certificates_that_c2pa_does_not_take_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "A Studio")])
    begin = datetime.now(UTC) - timedelta(days=1)
    plain = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, begin + timedelta(days=9))  # for no use
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "chain.pem").write_bytes(plain.sign(key, hashes.SHA256()).public_bytes(encoding))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none))
    command = ("provenance", "keys", "--chain", tmp_path / "chain.pem", "--key", tmp_path / "key.pem")
    assert "certificate is invalid" in told(capsys, *command, code=3)[1]
    assert not default_path().exists()
