import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

import pytest_modelserve as ms
from pytest_modelserve.__main__ import main
from pytest_modelserve.artifacts import save_artifact
from pytest_modelserve.artifacts.store import Store
from tests.signing.conftest import openssl
from tests.signing.test_manifest import ROWS, flip

pytest.importorskip("model_signing")


@pytest.fixture
def signed(models, keys):
    """The path of a signed model."""
    ms.sign_model(models / "m.onnx", key=keys / "release.pem")
    return models / "m.onnx"


@pytest.fixture
def trusted(keys, monkeypatch):
    monkeypatch.setenv("MODELSERVE_TRUST", str(keys / "release.pub"))


def test_a_signed_model_verifies_with_its_public_key(signed, keys):
    assert ms.verify_model(signed, trust=keys / "release.pub").sha256 == ms.open_artifact(signed).sha256


def test_one_of_several_trusted_keys_is_enough(signed, keys):
    assert ms.verify_model(signed, trust=[keys / "other.pub", keys / "release.pub"])


@pytest.mark.parametrize("name", ["m.onnx", "weights/w.bin"])
def test_a_changed_byte_of_any_file_is_refused(signed, keys, name):
    flip(signed.parent / name, 3)
    with pytest.raises(ms.VerificationError, match=f"Hash mismatch for '{name}'"):
        ms.verify_model(signed, trust=keys / "release.pub")


def test_another_key_is_refused(signed, keys):
    with pytest.raises(ms.VerificationError, match=r"other.pub: Key mismatch"):
        ms.verify_model(signed, trust=keys / "other.pub")


def test_an_edited_signature_is_refused(signed, keys):
    path = signed.with_name("m.onnx.sig")
    flip(path, path.read_text().index('"sig":') + 12)
    with pytest.raises(ms.VerificationError, match="is refused"):
        ms.verify_model(signed, trust=keys / "release.pub")


def test_an_unsigned_model_is_refused_and_told_how_to_sign(models, keys):
    with pytest.raises(ms.VerificationError, match=r"is not signed.*pytest_modelserve sign m.onnx --key KEY"):
        ms.verify_model(models / "m.onnx", trust=keys / "release.pub")


def test_a_signature_of_another_model_is_refused(signed, keys):
    other = signed.with_name("other.onnx")
    signed.rename(other)
    signed.with_name("m.onnx.sig").rename(signed.with_name("other.onnx.sig"))
    with pytest.raises(ms.VerificationError, match=r"'m.onnx': No such file"):
        ms.verify_model(other, trust=keys / "release.pub")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"dsseEnvelope": {"payload": "!"}}', '{"dsseEnvelope": {"payload": "e30="}}']
)
def test_what_is_no_signature_is_refused(signed, keys, content):
    signed.with_name("m.onnx.sig").write_text(content)
    with pytest.raises((ms.VerificationError, ms.InputError), match=r"no signature of a model|no JSON document"):
        ms.verify_model(signed, trust=keys / "release.pub")


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("rsa.pem", "of the wrong kind, RSA"),
        ("release.pub", "signing needs the private key"),
        ("missing.pem", "No such file"),
        ("text.pem", "cannot be read as PEM"),
        ("encrypted.pem", "the private key is encrypted"),
        ("secp256k1.pem", "wrong kind, curve secp256k1"),
    ],
)
def test_private_keys_of_the_wrong_kind_are_named(models, keys, key, named):
    (keys / "text.pem").write_text("no key")
    openssl("ec", "-in", keys / "release.pem", "-aes256", "-passout", "pass:x", "-out", keys / "encrypted.pem")
    openssl("ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", keys / "secp256k1.pem")
    with pytest.raises(ms.InputError, match=named):
        ms.sign_model(models / "m.onnx", key=keys / key)
    assert not (models / "m.onnx.sig").exists()


@pytest.mark.parametrize(("key", "named"), [("rsa.pub", "of the wrong kind, RSA"), ("release.pem", "is a private key")])
def test_public_keys_of_the_wrong_kind_are_named(signed, keys, key, named):
    with pytest.raises(ms.InputError, match=named):
        ms.verify_model(signed, trust=keys / key)


def test_without_a_key_the_variable_is_named(models):
    with pytest.raises(ms.UsageError, match="MODELSERVE_SIGN_KEY"):
        ms.sign_model(models / "m.onnx")
    with pytest.raises(ms.UsageError, match="MODELSERVE_TRUST"):
        ms.verify_model(models / "m.onnx")


def test_the_key_may_stand_in_the_environment(models, keys, monkeypatch, trusted):
    monkeypatch.setenv("MODELSERVE_SIGN_KEY", (keys / "release.pem").read_text())
    ms.sign_model(models / "m.onnx")
    assert ms.verify_model(models / "m.onnx")


def test_without_the_extra_the_install_command_is_named(models, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ms.MissingDependencyError, match=r"pip install 'pytest-modelserve\[signing\]'"):
        ms.sign_model(models / "m.onnx", key=keys / "release.pem")


# Certificates


@pytest.fixture(scope="module")
def certificates(keys):
    """A root, a leaf for signing that it issued, and a root of somebody else."""
    for name in ("root", "leaf", "stranger"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", keys / f"{name}.pem")
    for name in ("root", "stranger"):
        openssl(
            "req",
            "-x509",
            "-new",
            "-key",
            keys / f"{name}.pem",
            "-subj",
            f"/CN={name}",
            "-days",
            "30",
            "-out",
            keys / f"{name}.crt",
        )
    openssl("req", "-new", "-key", keys / "leaf.pem", "-subj", "/CN=leaf", "-out", keys / "leaf.csr")
    (keys / "usage").write_text("keyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n")
    openssl(
        "x509",
        "-req",
        "-in",
        keys / "leaf.csr",
        "-CA",
        keys / "root.crt",
        "-CAkey",
        keys / "root.pem",
        "-days",
        "20",
        "-extfile",
        keys / "usage",
        "-out",
        keys / "leaf.crt",
    )
    return keys


def test_a_certificate_verifies_with_its_root_and_with_no_other(models, certificates):
    chain = [certificates / "leaf.crt", certificates / "root.crt"]
    ms.sign_model(models / "m.onnx", key=certificates / "leaf.pem", certificates=chain)
    assert ms.verify_model(models / "m.onnx", trust=certificates / "root.crt")
    with pytest.raises(ms.VerificationError, match=r"stranger.crt: "):
        ms.verify_model(models / "m.onnx", trust=certificates / "stranger.crt")


def test_a_certificate_of_another_key_cannot_sign(models, certificates):
    with pytest.raises(ms.InputError, match="does not match"):
        ms.sign_model(models / "m.onnx", key=certificates / "stranger.pem", certificates=[certificates / "leaf.crt"])


# The reference implementation


def model_signing(*arguments):
    return subprocess.run([sys.executable, "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True)


def test_the_signature_is_one_that_the_reference_implementation_verifies(signed, keys):
    command = (
        "verify",
        "key",
        "--public_key",
        keys / "release.pub",
        "--signature",
        f"{signed}.sig",
        "--ignore_unsigned_files",
    )
    assert model_signing(*command, signed.parent).returncode == 0
    flip(signed.parent / "weights/w.bin", 0)
    assert model_signing(*command, signed.parent).returncode != 0


def test_signatures_of_the_reference_implementation_verify(models, keys):
    for target in (models, models / "m.onnx"):
        model_signing(
            "sign", "key", "--private_key", keys / "release.pem", "--signature", models / "m.onnx.sig", target
        )
        if target == models:
            assert ms.verify_model(models / "m.onnx", trust=keys / "release.pub")
        else:  # of the model file alone, without its weights
            with pytest.raises(ms.VerificationError, match=r"weights/w.bin', which does not exist"):
                ms.verify_model(models / "m.onnx", trust=keys / "release.pub")


# Policy


def test_serve_opens_what_a_trusted_key_signed(signed, trusted):
    with ms.serve(signed) as predictor:
        assert predictor.artifact.path.parent != signed.parent
        np.testing.assert_array_equal(predictor.predict(ROWS)["y"], np.full((2, 3), 4.0))


@pytest.mark.parametrize("opened", [str, ms.open_artifact])
def test_serve_refuses_an_unsigned_model_where_keys_are_trusted(models, trusted, opened):
    with pytest.raises(ms.VerificationError, match="is not signed"):
        ms.serve(opened(models / "m.onnx"))


def test_serve_refuses_a_changed_model_before_it_is_parsed(signed, trusted, monkeypatch):
    flip(signed, 3)
    monkeypatch.setattr("pytest_modelserve.signing.signature.describe_file", None)
    with pytest.raises(ms.VerificationError, match="Hash mismatch"):
        ms.serve(signed)


def test_models_that_stages_make_need_no_signature(signed, trusted, tmp_path):
    artifact = save_artifact(onnx.load(signed), tmp_path / "made.onnx", name="made", variant="", lineage=())
    with ms.serve(artifact) as predictor:
        assert predictor.predict(ROWS)["y"].shape == (2, 3)


def test_manifest_and_signature_are_both_asked_for(signed, trusted):
    manifest = ms.write_manifest(signed.parent)
    with ms.serve(signed, manifest=manifest) as predictor:
        assert predictor.predict(ROWS)["y"].shape == (2, 3)
    os.unlink(f"{signed}.sig")
    with pytest.raises(ms.VerificationError, match="is not signed"):
        ms.serve(signed, manifest=manifest)


# Settings and commands


def test_the_setting_refuses_unsigned_models_until_the_run_ends(signed, keys, pytester):
    unsigned = signed.with_name("unsigned.onnx")
    unsigned.write_bytes(signed.read_bytes())
    pytester.makeini(f"[pytest]\nmodelserve_trust = {keys / 'other.pub'}:{keys / 'release.pub'}")
    config = pytester.parseconfigure()
    ms.serve(signed).close()
    with pytest.raises(ms.VerificationError, match=r"is not signed: there is no .*unsigned.onnx.sig"):
        ms.serve(unsigned)
    config._ensure_unconfigure()
    ms.serve(unsigned).close()


def test_a_contract_refuses_an_unsigned_model_before_it_is_opened(models, trusted):
    from pytest_modelserve.contracts.contract import read_contract
    from pytest_modelserve.contracts.gate_runner import GateRunner

    path = models / "m.modelgate.toml"
    path.write_text('subject = "m.onnx"\n[gates.size]\nmax_bytes = 10000')
    (call,) = read_contract(path, root=models)
    with pytest.raises(ms.VerificationError, match="is not signed"):
        GateRunner().run(call)


def test_a_model_file_of_the_command_line_is_not_opened_unless_it_is_signed(models, trusted):
    from pytest_modelserve.contracts.model_file import ModelFile, Options

    file = ModelFile(models / "m.onnx", Options())
    with pytest.raises(ms.VerificationError, match="is not signed"):
        _ = file.artifact


def test_a_contract_opens_the_copy_that_was_verified(signed, trusted):
    from pytest_modelserve.contracts.contract import read_contract
    from pytest_modelserve.contracts.gate_runner import GateRunner

    path = signed.parent / "m.modelgate.toml"
    path.write_text('subject = "m.onnx"\n[gates.size]\nmax_bytes = 10000')
    (call,) = read_contract(path, root=signed.parent)
    runner = GateRunner()
    copy = runner.arguments(call)["candidate"].artifact.path
    assert copy.parent != signed.parent
    runner.close()
    assert not copy.exists()


def test_the_checks_of_a_model_file_open_the_copy_that_was_verified(signed, trusted):
    from pytest_modelserve.contracts.model_file import ModelFile, Options

    file = ModelFile(signed, Options())
    copy = file.artifact.path
    assert copy.parent != signed.parent
    file.close()
    assert not copy.exists()


@pytest.fixture
def exchanged(signed, monkeypatch):
    """A signed model, each of whose verified copies is made just before an attacker exchanges the file."""
    from pytest_modelserve.signing.untrusted_files import PrivateCopy

    add, other = PrivateCopy.add, signed.read_bytes().replace(b"MatMul", b"MatNul")

    def add_and_exchange(copy, location=None):
        try:
            return add(copy, location)
        finally:
            if len(copy.digests) == 2:
                signed.write_bytes(other)

    monkeypatch.setattr(PrivateCopy, "add", add_and_exchange)
    return signed


def test_compress_opens_the_copy_that_was_verified(exchanged, trusted, tmp_path):
    smaller = ms.compress(ms.open_artifact(exchanged), "int8-dynamic", store=Store(tmp_path / "store"))
    assert b"MatNul" in exchanged.read_bytes()
    with ms.serve(smaller) as predictor:
        np.testing.assert_array_equal(predictor.predict(ROWS)["y"], np.full((2, 3), 4.0))


def test_fresh_processes_open_the_copy_that_was_verified(exchanged, trusted):
    from pytest_modelserve.performance.fresh_process import fresh_job, start_in_fresh_process

    batches = [{"x": ROWS}]
    _, job, _ = fresh_job(exchanged, batches, providers=None, threads=None, calls=1)
    assert b"MatNul" in exchanged.read_bytes()
    assert start_in_fresh_process(job, batches, time_limit_s=60).first_call_ms > 0
    copy = job.artifact.path
    assert copy.exists()
    del job
    assert not copy.exists()


def test_no_stage_or_gate_opens_an_unsigned_model_where_keys_are_trusted(models, trusted):
    path = models / "m.onnx"
    for call in (lambda: ms.compress(path, "simplify"), lambda: ms.measure_cold_start(path, ROWS, max_ms=1000)):
        with pytest.raises(ms.VerificationError, match="is not signed"):
            call()


NO_PATHS = [5, b"m.onnx", ["m.onnx", 5], {"m.onnx"}, "", "a\0b"]


@pytest.mark.parametrize("given", NO_PATHS, ids=repr)
def test_what_is_no_path_is_one_usage_error(signed, keys, given):
    key, public = keys / "release.pem", keys / "release.pub"
    for call in (
        lambda: ms.open_artifact(given),
        lambda: ms.sign_model(given, key=key),
        lambda: ms.sign_model(signed, key=given),
        lambda: ms.sign_model(signed, key=key, signature=given),
        lambda: ms.sign_model(signed, key=key, certificates=[given]),
        lambda: ms.verify_model(given, trust=public),
        lambda: ms.verify_model(signed, trust=[given]),
        lambda: ms.verify_model(signed, trust=public, signature=given),
        lambda: ms.verify_statement(given, signed, trust=public),
        lambda: ms.verify_statement("s.json", signed, trust=public, contract=given),
        lambda: ms.write_manifest(given),
        lambda: ms.write_manifest(signed.parent, given),
        lambda: ms.assert_untampered(given),
        lambda: ms.assert_untampered(signed.parent, given),
        lambda: ms.serve(signed, manifest=given),
    ):
        with pytest.raises(ms.UsageError, match=r"must be a path|is no path|a private key is missing"):
            call()


def test_a_key_of_the_setting_that_does_not_exist_is_an_error(pytester):
    with pytest.raises(pytest.UsageError, match=r"--modelserve-trust: .*nothing.pub' is not a file"):
        pytester.parseconfigure("--modelserve-trust=nothing.pub")


def test_commands_write_and_check_manifests_and_signatures(models, keys, capsys):
    model, key = str(models / "m.onnx"), str(keys / "release")
    assert main(["sign", model, "--key", f"{key}.pem"]) == 0
    assert main(["verify", model, "--key", f"{key}.pub"]) == 0
    assert main(["manifest", str(models)]) == 0
    assert main(["manifest", str(models), "--check"]) == 0
    flip(models / "m.onnx", 3)
    assert main(["manifest", str(models), "--check"]) == 1
    assert main(["verify", model, "--key", f"{key}.pub"]) == 1
    assert main(["verify", model, "--key", "nothing.pub"]) == 2
    assert "refused: the signature" in capsys.readouterr().err
