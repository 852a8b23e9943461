"""Signed files say who signed them, and no byte of picture or claim changes unnoticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutoscope.errors import BackendUnavailableError, ProvenanceError
from mutoscope.output.video import write_video

pytest.importorskip("c2pa")

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mutoscope.provenance import signature
from mutoscope.provenance.keys import Signer, make_signer
from mutoscope.provenance.signature import BESIDE, EMBEDDED, INVALID, NONE, TRUSTED, UNCHECKED, VALID, check, sign
from mutoscope.provenance.tag import has_tag

from tests.runtime.clips import chunked, make_header, scene

ENDINGS = [*EMBEDDED, *BESIDE]
SAID = {"content_sha256": "ab" * 32, "watermarked": True, "made": {"seed": 7}}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("keys") / "provenance" / "signer.pem")


def signed(folder: Path, ending: str, signer: Signer) -> Path:
    count = 1 if ending == ".png" else 5
    plain = write_video(folder / f"plain{ending}", chunked(scene(count)), make_header(count))
    path = folder / f"out{ending}"
    if ending in EMBEDDED:
        sign(plain, ending, path, signer, SAID)
    else:
        sign(plain, ending, path.with_name(path.name + ".c2pa"), signer, SAID)
        plain.rename(path)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_who_signed_is_known_to_whoever_has_the_root(tmp_path: Path, ending: str, signer: Signer) -> None:
    path = signed(tmp_path, ending, signer)
    assert check(path, [signer.root]).state == TRUSTED
    stranger = check(path)
    assert (stranger.state, stranger.signer, stranger.facts) == (VALID, "Mutoscope local, not verified", SAID)
    assert ending == ".npy" or has_tag(path)
    assert ending in BESIDE or path.stat().st_size - (tmp_path / f"plain{ending}").stat().st_size < 4000


def test_the_manifest_says_what_made_the_video_as_c2pa_has_it(tmp_path: Path, signer: Signer) -> None:
    import c2pa

    with c2pa.Reader(str(signed(tmp_path, ".mp4", signer))) as reader:
        manifest = json.loads(reader.json())
    active = manifest["manifests"][manifest["active_manifest"]]
    actions = next(each for each in active["assertions"] if each["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert [action["action"] for action in actions] == ["c2pa.created", "c2pa.watermarked.unbound"]
    assert actions[0]["digitalSourceType"].endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    assert "thumbnail" not in active


def test_the_manifest_of_a_video_with_footage_in_it_has_the_term_of_a_composite(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import c2pa

    monkeypatch.setattr("mutoscope.output.signing.is_available", lambda: True)
    for has_footage, term in ((True, "compositeWithTrainedAlgorithmicMedia"), (False, "trainedAlgorithmicMedia")):
        header = replace(make_header(1), has_footage=has_footage)
        path = write_video(tmp_path / f"{term}.png", chunked(scene(1)), header, sign=signer)
        with c2pa.Reader(str(path)) as reader:
            manifest = json.loads(reader.json())
        active = manifest["manifests"][manifest["active_manifest"]]["assertions"]
        actions = next(each for each in active if each["label"].startswith("c2pa.actions"))["data"]["actions"]
        assert actions[0]["digitalSourceType"].rpartition("/")[2] == term


def ranges_of_the_manifest(content: bytes, ending: str) -> list[range]:
    """Where a file has its manifest, and, in an MP4, the brands, which C2PA leaves out of the hash."""
    if ending in (".mp4", ".mov"):
        found, at = [], 0
        while at < len(content):
            size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
            if kind in (b"ftyp", b"free") or content[at + 8 : at + 24].hex() == "d8fec3d61b0e483c92975828877ec481":
                found.append(range(at, at + size))
            at += size
        return found
    start = content.index(b"jumb") - 4
    return [range(start - 24, start + int.from_bytes(content[start : start + 4]) + 24)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_byte_of_the_picture_that_is_changed_is_found(tmp_path: Path, ending: str, signer: Signer) -> None:
    path = signed(tmp_path, ending, signer)
    content = path.read_bytes()
    left_out = ranges_of_the_manifest(content, ending) if ending in EMBEDDED else []
    places = [at for at in range(len(content)) if not any(at in each for each in left_out)]
    for at in [places[0], *np.random.default_rng(5).choice(places, 40), places[-1]]:
        changed = bytearray(content)
        changed[at] ^= 0x10
        path.write_bytes(bytes(changed))
        assert check(path, [signer.root]).state == INVALID, at
    path.write_bytes(content)
    assert check(path, [signer.root]).state == TRUSTED
    path.write_bytes(content[: places[-1]])
    assert check(path, [signer.root]).state == INVALID


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webm"])
@pytest.mark.parametrize(
    "claimed", [b"trainedAlgorithmicMedia", b"c2pa.created", b"abababab", b"watermarked", b"xmp.iid:", b"Mutoscope"]
)
def test_any_word_of_the_claim_that_is_changed_is_found(
    tmp_path: Path, ending: str, claimed: bytes, signer: Signer
) -> None:
    path = signed(tmp_path, ending, signer)
    holder = path if ending in EMBEDDED else path.with_name(path.name + ".c2pa")
    content = holder.read_bytes()
    at = content.index(claimed, content.index(b"jumb"))
    for place in range(at, at + len(claimed)):
        holder.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert check(path, [signer.root]).state == INVALID, place


def test_another_encoding_has_none(tmp_path: Path, signer: Signer) -> None:
    signed(tmp_path, ".mp4", signer)
    assert check(tmp_path / "plain.mp4") == signature.Verdict(NONE)


def test_a_sidecar_of_another_file_does_not_fit(tmp_path: Path, signer: Signer) -> None:
    path = signed(tmp_path, ".webm", signer)
    other = write_video(tmp_path / "other.webm", chunked(scene(3)), make_header(3))
    path.with_name("out.webm.c2pa").rename(tmp_path / "other.webm.c2pa")
    assert check(other).state == INVALID and check(path).state == NONE
    (tmp_path / "other.webm.c2pa").write_bytes(b"nothing of the kind")
    assert check(other).state == INVALID


def test_a_function_signs_where_the_key_is_elsewhere(tmp_path: Path, signer: Signer) -> None:
    assert isinstance(signer.key, str)
    private = load_pem_private_key(signer.key.encode(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)

    def in_the_hsm(content: bytes) -> bytes:
        numbers = utils.decode_dss_signature(private.sign(content, ec.ECDSA(SHA256())))
        return b"".join(number.to_bytes(32) for number in numbers)

    def gone(content: bytes) -> bytes:
        raise ConnectionError("the HSM does not answer")

    path = signed(tmp_path, ".mp4", Signer(signer.chain, in_the_hsm))
    assert check(path, [signer.root]).state == TRUSTED
    with pytest.raises(ProvenanceError, match="cannot be signed"):
        sign(path, ".mp4", tmp_path / "again.mp4", Signer(signer.chain, gone), {})


def test_without_c2pa_it_is_said_what_to_install(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = signed(tmp_path, ".png", signer)
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'mutoscope\[provenance\]'"):
        sign(path, ".png", tmp_path / "again.png", signer, {})
    monkeypatch.setattr(signature, "is_available", lambda: False)
    verdict = check(path)
    assert verdict.state == UNCHECKED and "pip install" in verdict.detail
