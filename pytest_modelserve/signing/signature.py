"""Signatures of model files, made and verified offline with model-signing; and the private copy that is then opened."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_modelserve._files import as_path, write_file
from pytest_modelserve.artifacts import Artifact, describe_file, open_artifact
from pytest_modelserve.artifacts.artifact import without_change_check
from pytest_modelserve.errors import ArtifactError, InputError, UsageError, VerificationError, require
from pytest_modelserve.signing.keys import (
    PathLike,
    paths_in,
    paths_of_environment,
    private_key,
    private_pem,
    public_key,
    read_pem,
    trusted_paths,
)
from pytest_modelserve.signing.manifest import difference, locations_in
from pytest_modelserve.signing.untrusted_files import PrivateCopy, checked_location, read_json

SUFFIX = ".sig"


def sign_model(
    model: Artifact | PathLike,
    *,
    key: PathLike | None = None,
    certificates: Sequence[PathLike] = (),
    signature: PathLike | None = None,
) -> Path:
    """Sign a model, its external data included, and return the path of the signature.

    The signature is a Sigstore bundle in the format of OpenSSF Model Signing, with the sha256 of every file. It is made
    offline: nothing is sent to a transparency log.

    Args:
        model: The artifact, or the path of its file.
        key: The path of a private key on P-256, P-384 or P-521 in PEM, not encrypted (default: the environment variable
            `MODELSERVE_SIGN_KEY`, a path or the key itself).
        certificates: Certificates in PEM, the one of the key first, then those up to the root. Without them the
            signature names the key alone.
        signature: The file to write (default: beside the model, with ".sig" added to its name).

    Returns:
        The path of the signature.

    Raises:
        ArtifactError: The model cannot be opened, or one of its files is a link.
        InputError: The key or a certificate cannot be read, is of another kind, or they do not belong together.
        UsageError: No key is given, an argument is no path, or the signature cannot be written.
        MissingDependencyError: model-signing is not installed (extra `signing`).

    Example:
        >>> ms.sign_model("champion.onnx", key="release.pem")  # doctest: +SKIP
        PosixPath('champion.onnx.sig')
    """
    api = _model_signing("signing a model").signing
    pem = private_pem(key)
    private_key(pem)
    artifact = model if isinstance(model, Artifact) else open_artifact(model)
    chain = paths_in("certificates", certificates or ())
    target = _signature_path(artifact.path) if signature is None else as_path("signature", signature)
    copy = PrivateCopy(artifact.path)
    try:
        for location in _locations(artifact):
            copy.add(location)
        if describe_file(copy.path).sha256 != artifact.sha256:
            raise ArtifactError(f"the model {artifact.path} changed after it was opened: open it again")
        with tempfile.TemporaryDirectory(prefix="modelserve-") as folder, _quiet():
            pem_file, written = Path(folder) / "key.pem", Path(folder) / "bundle"
            pem_file.touch(0o600)
            pem_file.write_bytes(pem)
            config = api.Config().set_hashing_config(_hashing())
            if chain:
                first, *others = [_copied(path, Path(folder) / f"{n}.pem") for n, path in enumerate(chain)]
                config.use_certificate_signer(private_key=pem_file, signing_certificate=first, certificate_chain=others)
            else:
                config.use_elliptic_key_signer(private_key=pem_file)
            config.sign(copy.folder, written)
            write_file(target, [written.read_bytes()])
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise InputError(f"key and certificates cannot sign: {error}") from error
    except OSError as error:
        raise UsageError(f"the signature {target} cannot be written: {error.strerror or error}") from error
    finally:
        copy.close()
    return target


def verify_model(
    model: PathLike, *, trust: PathLike | Sequence[PathLike] | None = None, signature: PathLike | None = None
) -> Artifact:
    """Verify the signature of a model and return its artifact, or raise.

    Args:
        model: The path of the model file.
        trust: Public keys, and root certificates, in PEM; the signature of one of them is enough (default: the
            environment variable `MODELSERVE_TRUST`, paths separated like those of PATH). Every certificate that a root
            has issued for signing counts, with the time that it begins: use a root for this purpose alone.
        signature: The file of the signature (default: beside the model, with ".sig" added to its name).

    Returns:
        The artifact. The files can be changed afterwards; `serve` opens the copy that it has verified.

    Raises:
        VerificationError: The model is not signed, its signature is not valid or none of `trust`, or a file changed.
        ArtifactError: The model cannot be opened.
        InputError: A key cannot be read, or is of another kind.
        UsageError: No key is given.
        MissingDependencyError: model-signing is not installed (extra `signing`).

    Example:
        >>> ms.verify_model("champion.onnx", trust="release.pub")  # doctest: +SKIP
        <Artifact champion: x: float32[n, 4] -> y: float32[n], sha256 9f2c41b8d3aa…>
    """
    trusted = trusted_paths(trust)
    with contextlib.closing(PrivateCopy(model)) as copy:
        _verify(copy, trusted, None if signature is None else as_path("signature", signature))
        checked = _opened(copy)
    found = open_artifact(model)
    if found.sha256 != checked.sha256:
        raise ArtifactError(f"the model {found.path} changed while it was verified: try again")
    return found


@dataclass(frozen=True, slots=True)
class CheckedCopy:
    """The artifact of a private copy that was checked; `close` removes it."""

    artifact: Artifact
    close: Callable[[], None]


def checked_copy(model: Artifact | PathLike, manifest: PathLike | None) -> CheckedCopy | None:
    """Return a private copy of a model that agrees with its manifest and has a trusted signature, as far as asked.

    A signature is asked for where `MODELSERVE_TRUST` or the setting `modelserve_trust` names keys, and the model is a
    file of the user: what stages of this project make has no signature.

    Raises:
        VerificationError: A file is not in the manifest or differs from it; or the model is not signed, or not by a
            trusted key.
        ArtifactError: The model cannot be opened, or one of its files is a link.
        InputError: The manifest or a key cannot be read.
    """
    is_of_user = not isinstance(model, Artifact) or model.opened_by_user
    trusted = paths_of_environment() if is_of_user else []
    if manifest is None and not trusted:
        return None
    copy = PrivateCopy(model.path if isinstance(model, Artifact) else model)
    try:
        if trusted:
            _verify(copy, trusted, None)
        if manifest is not None:
            _compare(copy, as_path("manifest", manifest))
        return CheckedCopy(_opened_like(model, copy), copy.close)
    except BaseException:
        copy.close()
        raise


def _compare(copy: PrivateCopy, manifest: Path) -> None:
    """Copy a model's files as far as they agree with the manifest: none is parsed before its digest is known."""
    model = copy.source
    expected, prefix = locations_in(manifest, model)

    def check(location: str) -> None:
        name = prefix + location
        if name not in expected:
            raise VerificationError(f"the model {model} is refused: {name!r} is not in the manifest {manifest}")
        change = difference(name, copy.add(location), expected[name])
        if change is not None:
            raise VerificationError(f"the model {model} is refused: {change} {manifest}")

    check(model.name)
    for location in _external_locations(copy.path):
        check(location)
    for location in copy.digests:  # those that a signature lists
        check(location)


def _external_locations(model: Path) -> list[str]:
    """Return where a model file says that its tensors are, as far as these are places inside its folder."""
    from pytest_modelserve._onnx.graph import is_external, tensors_of
    from pytest_modelserve.artifacts import read_graph

    tensors = [tensor for tensor in tensors_of(read_graph(model)) if is_external(tensor)]
    found = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return sorted(str(checked_location(location)) for location in found)


def _opened(copy: PrivateCopy) -> Artifact:
    try:
        return describe_file(copy.path)
    except ArtifactError as error:  # for example external data that no signature covers
        raise VerificationError(f"the files that were checked cannot be opened: {error}") from error


def _opened_like(model: Artifact | PathLike, copy: PrivateCopy) -> Artifact:
    found = _opened(copy)
    if isinstance(model, Artifact):
        if found.sha256 != model.sha256:
            raise ArtifactError(f"the model {model.path} changed after it was opened: open it again")
        found = replace(found, name=model.name, variant=model.variant)
    return without_change_check(found)


def _verify(copy: PrivateCopy, trusted: Sequence[Path], signature: Path | None) -> None:
    """Copy the files that a signature lists and verify it; nothing is parsed as a model before."""
    model = copy.source
    api = _model_signing("verifying a model").verifying
    path = _signature_path(model) if signature is None else signature
    if not os.path.exists(path):
        raise VerificationError(
            f"the model {model} is not signed: there is no {path}; sign it with "
            f"`python -m pytest_modelserve sign {model.name} --key KEY`"
        )
    bundle = read_json(path)
    target = copy.folder
    try:
        names = _listed(bundle)
        if names == ["."]:  # a signature of one file alone
            copy.add()
            target = copy.path
        else:
            for name in names:
                copy.add(name)
            if model.name not in names:
                raise ArtifactError(f"it is of other files: {', '.join(map(repr, names[:5]))}")
    except (ArtifactError, InputError) as error:
        raise VerificationError(f"the signature {path} of the model {model} is refused: {error}") from None
    with tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
        same = Path(folder) / "bundle"
        same.write_text(json.dumps(bundle))  # what was read is what is verified
        reasons = []
        for number, each in enumerate(trusted):
            pem = _copied(each, Path(folder) / f"{number}.pem")
            config = api.Config().set_hashing_config(_hashing())
            if b"BEGIN CERTIFICATE-----" in pem.read_bytes():
                config.use_certificate_verifier(certificate_chain=[pem])
            else:
                public_key(pem.read_bytes())
                config.use_elliptic_key_verifier(public_key=pem)
            try:
                with _quiet():
                    config.verify(target, same)
                return
            except Exception as error:  # its exceptions share no base class, and cryptography's have no text
                text = str(error).strip() or "it is not valid: the signature or what it signs was changed"
                reasons.append(f"{each.name}: {text}")
    raise VerificationError(f"the signature {path} of the model {model} is refused: {'; '.join(reasons)}")


def _listed(bundle: Any) -> list[str]:
    """Return the files that a bundle says that it signs; nothing of it is verified yet."""
    try:
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        predicate = payload["predicate"]
        if predicate["serialization"]["method"] != "files":
            raise ArtifactError("it was made of parts of files, which is not supported: sign whole files")
        return sorted({str(each["name"]) for each in predicate["resources"]})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"it is no signature of a model: {type(error).__name__}: {error}") from None


def _model_signing(purpose: str) -> ModuleType:
    require("OpenSSL", purpose, extra="signing")  # which model-signing imports and does not declare
    return require("model_signing", purpose, extra="signing")


def _hashing() -> Any:
    return _model_signing("hashing a model").hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _locations(artifact: Artifact) -> list[str]:
    folder = artifact.path.parent
    return [artifact.path.name, *(path.relative_to(folder).as_posix() for path in artifact.external)]


def _signature_path(model: Path) -> Path:
    return model.with_name(model.name + SUFFIX)


def _copied(path: PathLike, target: Path) -> Path:
    target.write_bytes(read_pem(path))
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what model-signing prints, warns and logs of certificates without some extension."""
    logger = logging.getLogger("model_signing")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
