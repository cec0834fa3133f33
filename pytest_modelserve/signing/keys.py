"""Keys on elliptic curves, in PEM: from a file, or from the environment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelserve._files import as_path
from pytest_modelserve.errors import ArtifactError, InputError, UsageError, require
from pytest_modelserve.signing.untrusted_files import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

SIGN_KEY = "MODELSERVE_SIGN_KEY"
"""The environment variable of the private key: its path, or the key itself in PEM."""
TRUST = "MODELSERVE_TRUST"
"""The environment variable of the public keys and certificates that count: paths, separated like those of PATH."""
PathLike = str | os.PathLike[str]
_MOST_KEY_BYTES = 1 << 20
_HOW = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out release.pem`"


def trusted_paths(trust: PathLike | Sequence[PathLike] | None) -> list[Path]:
    """Return the paths of the keys that count: `trust`, else those of the environment; UsageError if there are none."""
    found = paths_of_environment() if trust is None else paths_in("trust", trust)
    if not found:
        raise UsageError(f"a public key is missing: give its path, or set the environment variable {TRUST}")
    return found


def paths_in(argument: str, given: object) -> list[Path]:
    """Return the path, or the paths, that were given as `argument`; UsageError for anything else."""
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return [as_path(argument, each) for each in given]
    return [as_path(argument, given)]


def paths_of_environment() -> list[Path]:
    """Return the paths in the environment variable MODELSERVE_TRUST."""
    return [Path(each) for each in os.environ.get(TRUST, "").split(os.pathsep) if each]


def read_pem(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a key or certificate file; raise InputError if it cannot be read."""
    path = as_path("key", path).resolve()  # a secret is often mounted as a link
    try:
        with open_regular(path.parent, path.name) as file:
            return file.read(_MOST_KEY_BYTES) or b""
    except ArtifactError as error:
        raise InputError(f"key {path}: {error}") from None


def private_pem(key: str | os.PathLike[str] | None) -> bytes:
    """Return the PEM of a private key: of the file `key`, else of the environment variable MODELSERVE_SIGN_KEY."""
    given = os.environ.get(SIGN_KEY, "") if key is None else key
    if given == "":
        raise UsageError(f"a private key is missing: give its path, or set the environment variable {SIGN_KEY}")
    return given.encode() if isinstance(given, str) and given.startswith("-----BEGIN") else read_pem(given)


def private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a PEM; raise InputError for anything else."""
    require("cryptography", "signing", extra="signing")
    from cryptography.hazmat.primitives import serialization

    if b"PUBLIC KEY-----" in pem or b"CERTIFICATE-----" in pem:
        raise InputError("the key is a public key or a certificate, and signing needs the private key")
    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise InputError("the private key is encrypted: pass it decrypted, for example in the environment") from None
    except ValueError as error:
        raise InputError(f"the private key cannot be read as PEM: {error}; {_HOW}") from None
    private: ec.EllipticCurvePrivateKey = _on_curve(key)
    return private


def public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key in a PEM; raise InputError for anything else."""
    require("cryptography", "verifying", extra="signing")
    from cryptography.hazmat.primitives import serialization

    if b"PRIVATE KEY-----" in pem:
        raise InputError(
            "the key is a private key, which only the signer should have: make the public one with "
            "`openssl ec -in release.pem -pubout -out release.pub`"
        )
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise InputError(f"the public key cannot be read as PEM: {error}") from None
    public: ec.EllipticCurvePublicKey = _on_curve(key)
    return public


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Return the sha256 of a public key in DER."""
    from cryptography.hazmat.primitives import serialization

    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def hash_of(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> HashAlgorithm:
    """Return the hash that goes with the size of a key's curve (FIPS 186-5)."""
    from cryptography.hazmat.primitives import hashes

    of_size: dict[int, HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return of_size[key.curve.key_size]


def _on_curve(key: Any) -> Any:
    curve = getattr(key, "curve", None)
    if curve is None or curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        kind = type(key).__name__ if curve is None else f"curve {curve.name}"
        raise InputError(f"the key is of the wrong kind, {kind}: expected one on P-256, P-384 or P-521; {_HOW}")
    return key
