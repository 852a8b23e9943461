"""The key and certificates of an installation: safe, made once, and refused where they are not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mutoscope.errors import ProvenanceError

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from mutoscope.provenance.keys import Signer, describe, keep_signer, make_signer, read_signer, signer_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")


def pem(key, encryption=None) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()).decode()


def certificate(key, days: int = 365) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "A Studio")])
    begin = datetime.now(UTC) - timedelta(days=400)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, begin + timedelta(days=400 + days))
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else x509.base.hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "provenance" / "signer.pem"


def test_the_first_use_makes_a_key_that_only_the_user_can_read(path: Path) -> None:
    assert read_signer(path) is None
    signer = make_signer(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = make_signer(path)
    assert (again.chain, again.key) == (signer.chain, signer.key)
    assert os.listdir(path.parent) == ["signer.pem"]
    assert signer.key not in repr(signer)


def test_openssl_finds_the_chain_to_be_one_for_signatures(path: Path, tmp_path: Path) -> None:
    signer = make_signer(path)
    (tmp_path / "root.pem").write_text(signer.root)
    (tmp_path / "leaf.pem").write_text(signer.chain.removesuffix(signer.root))
    command = ["openssl", "verify", "-x509_strict", "-purpose", "smimesign", "-CAfile", "root.pem", "leaf.pem"]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert done.stdout == "leaf.pem: OK\n", done.stderr
    facts = describe(signer)
    assert facts["subject"].endswith("O=Mutoscope local\\, not verified")
    assert facts["valid_until"] > f"{datetime.now(UTC) + timedelta(days=9 * 365):%Y-%m-%d}"


def test_of_those_who_make_one_at_once_one_wins_for_all(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make_signer, [path] * 8))
    assert len({signer.key for signer in found}) == 1


@pytest.mark.parametrize(("what", "mode"), [("file", 0o640), ("file", 0o604), ("folder", 0o750)])
def test_a_key_that_others_can_get_at_is_refused(path: Path, what: str, mode: int) -> None:
    make_signer(path)
    (path if what == "file" else path.parent).chmod(mode)
    with pytest.raises(ProvenanceError, match=r"no one else may open it \(mode [67]00\)"):
        make_signer(path)


def test_a_link_in_place_of_the_key_is_refused(path: Path, tmp_path: Path) -> None:
    make_signer(path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProvenanceError, match="cannot be read"):
        make_signer(path)


def test_a_damaged_key_is_refused_and_stays(path: Path) -> None:
    make_signer(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ProvenanceError, match="is damaged: this is not a private key with"):
        make_signer(path)
    assert path.stat().st_size == 100


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "es256"),
        (ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
        (rsa.generate_private_key(65537, 2048), "ps256"),
    ],
)
def test_a_companys_key_takes_the_place_of_the_local_one(path: Path, key, algorithm: str) -> None:
    make_signer(path)
    keep_signer(signer_of(certificate(key), pem(key).rstrip("\n")), path)
    kept = make_signer(path)
    assert (kept.algorithm, kept.key, describe(kept)["subject"]) == (algorithm, pem(key), "O=A Studio")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_cannot_sign_is_refused_with_the_reason() -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    odd, small = ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 1024)
    for chain, private, reason in [
        (certificate(key), pem(other), "does not belong to the key"),
        (certificate(key), pem(key, BestAvailableEncryption(b"secret")), "encrypted"),
        (certificate(key, days=-1), pem(key), "was valid until"),
        ("", pem(key), "not a private key"),
        (certificate(odd), pem(odd), "curves secp256r1"),
        (certificate(small), pem(small), "2048 bits or more"),
    ]:
        with pytest.raises(ProvenanceError, match=reason):
            signer_of(chain, private)


def test_a_function_can_sign_in_place_of_a_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert Signer(certificate(key), lambda content: content).algorithm == "es256"
