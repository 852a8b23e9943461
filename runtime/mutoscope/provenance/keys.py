"""Whose signature a file gets: a key with its certificates, made here on first use or taken from a company.

One file holds both, so that they change together. Knows X.509, files and permissions. Knows nothing of C2PA's format.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutoscope_engines.system import portable_files
from mutoscope_engines.system.user_folders import data_folder

from ..errors import ProvenanceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder

LOCAL_NAME = "Mutoscope local, not verified"
LOCAL_YEARS = 10  # a signature without a time stamp is not valid beyond its certificate

_BEGIN_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_LEAST_RSA_BITS = 2048
_MOST_BYTES = 1 << 20


class Signer:
    """A chain of certificates and what signs for it.

    No dataclass, so that nothing takes it for plain values and writes the key somewhere.

    Args:
        chain: PEM; the signer's own certificate first, that of the root last.
        key: the private key as PEM; or a function that signs bytes where the key is elsewhere, such as in an HSM, and
            gives the signature as C2PA has it: for ECDSA the numbers r and s, in as many bytes each as the curve has.
        algorithm: C2PA's name of it: es256, es384, es512, ps256 or ed25519.
    """

    def __init__(self, chain: str, key: str | Callable[[bytes], bytes], algorithm: str = "es256") -> None:
        self.chain, self.key, self.algorithm = chain, key, algorithm

    @property
    def root(self) -> str:
        """The last certificate of the chain, as PEM."""
        return _BEGIN_CERTIFICATE + self.chain.rpartition(_BEGIN_CERTIFICATE)[2]


def default_path() -> Path:
    """Where the key and its certificates are: in the user's data folder.

    Raises:
        BackendUnavailableError: the user has no home.
    """
    return data_folder("the key that signs videos") / "provenance" / "signer.pem"


def read_signer(path: Path) -> Signer | None:
    """The key and the certificates of this installation, or `None` where there are none yet.

    Raises:
        ProvenanceError: somebody else could have read or written them, or they are damaged.
    """
    try:
        file = portable_files.open_unlinked(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ProvenanceError(f"the key {path} cannot be read: {error.strerror}. {_REMEDY}") from error
    with file:
        for place, facts in ((path, os.fstat(file.fileno())), (path.parent, path.parent.stat())):
            if not portable_files.is_ours(facts, without=0o077):
                mode = "700" if stat.S_ISDIR(facts.st_mode) else "600"
                raise ProvenanceError(
                    f"{place} must belong to this user, and no one else may open it (mode {mode}). {_REMEDY}"
                )
        content = file.read(_MOST_BYTES).decode("ascii", "replace")
    key, begin, chain = content.partition(_BEGIN_CERTIFICATE)
    try:
        return signer_of(begin + chain, key)
    except ProvenanceError as error:
        raise ProvenanceError(f"the key {path} is damaged: {error}. {_REMEDY}") from error


def make_signer(path: Path) -> Signer:
    """The key and certificates of this installation, made now if there are none. Of two that do so, one wins for both.

    Raises:
        ProvenanceError: those that are there are unsafe or damaged.
        OSError: they cannot be written.
    """
    while (signer := read_signer(path)) is None:
        chain, key = _local_chain()
        _write(path, key + chain, replaces=False)
    return signer


def keep_signer(signer: Signer, path: Path) -> None:
    """Makes a company's key and chain those of this installation, in place of what is there.

    Raises:
        OSError: they cannot be written.
    """
    assert isinstance(signer.key, str)
    _write(path, signer.key + signer.chain, replaces=True)


def signer_of(chain: str, key: str) -> Signer:
    """A signer from two PEM texts.

    Raises:
        ProvenanceError: they are no chain and key that belong together and that C2PA can use; says why.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
        private = load_pem_private_key(key.encode(), password=None)
    except TypeError as error:
        raise ProvenanceError("the key is encrypted; give it without a password, or sign by a function") from error
    except ValueError as error:
        raise ProvenanceError("this is not a private key with its chain of certificates in PEM") from error
    if private.public_key() != certificates[0].public_key():
        raise ProvenanceError("the first certificate of the chain does not belong to the key")
    if certificates[0].not_valid_after_utc < datetime.now(UTC):
        raise ProvenanceError(f"the certificate was valid until {certificates[0].not_valid_after_utc:%Y-%m-%d}")
    ends = "" if key.endswith("\n") else "\n"
    return Signer(chain, key + ends, _algorithm(private))


def describe(signer: Signer) -> dict[str, str]:
    """Of the signer's certificate: whose it is, who issued it, until when it is valid, and the hash of the root."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    certificate, root = (x509.load_pem_x509_certificates(pem.encode())[0] for pem in (signer.chain, signer.root))
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "valid_until": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        "algorithm": signer.algorithm,
        "root_sha256": root.fingerprint(SHA256()).hex(),
    }


def _algorithm(private: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= _LEAST_RSA_BITS:
        return "ps256"
    raise ProvenanceError(
        f"C2PA takes keys on the curves {', '.join(_CURVES)}, Ed25519 keys, and RSA keys of {_LEAST_RSA_BITS} bits or "
        f"more; this one is of another kind ({type(private).__name__})"
    )


def _local_chain() -> tuple[str, str]:
    """Certificates and key of this installation. The root's key is thrown away: it can certify nobody else."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID

    above, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = (
        _certificate("root", above, above)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .sign(above, SHA256())
    )
    leaf = (
        _certificate("signer", own, above)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        # One of those that every verifier of C2PA accepts; its own is refused where it is not configured.
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(above, SHA256())
    )

    def pem(certificate: Certificate) -> str:
        return certificate.public_bytes(Encoding.PEM).decode()

    key = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem(leaf) + pem(root), key


def _certificate(whose: str, key: EllipticCurvePrivateKey, issuer: EllipticCurvePrivateKey) -> CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        pairs = ((NameOID.ORGANIZATION_NAME, LOCAL_NAME), (NameOID.COMMON_NAME, text))
        return x509.Name([x509.NameAttribute(*pair) for pair in pairs])

    begin = datetime.now(UTC) - timedelta(days=1)  # for machines whose clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(name(whose))
        .issuer_name(name("root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=round(365.25 * LOCAL_YEARS)))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )


def _usage(**given: bool) -> Any:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def _write(path: Path, content: str, *, replaces: bool) -> None:
    path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.parent.mkdir(mode=0o700)
    portable_files.write_private(path, content.encode("ascii"), replaces=replaces)


_REMEDY = "Correct that, or remove the file: then the next video makes new ones"
