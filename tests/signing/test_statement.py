import base64
import json
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.__main__ import main
from pytest_modelserve.signing.keys import private_pem
from pytest_modelserve.signing.statement import _envelope
from tests.signing.conftest import run_in
from tests.signing.test_manifest import flip

pytest.importorskip("cryptography")

CONTRACT = """\
subject = "m.onnx"
[gates.size]
max_bytes = 1000
[gates.accuracy]
data = "rows.npz"
labels = "label"
min_value = 0.7
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory, keys):
    """A folder in which a contract was run: m.onnx, m.modelgate.toml and statement.json."""
    from tests.onnx_models import make_model

    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("release")
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make_model(nodes, {"x": ("float32", ["n", 2])}, {"y": ("float32", ["n", 2])}, {"w": np.eye(2, dtype="f4")})
    onnx.save(model, folder / "m.onnx")
    rows = np.eye(2, dtype=np.float32)[np.arange(200) % 2]
    np.savez(folder / "rows.npz", x=rows, label=rows.argmax(1))
    (folder / "m.modelgate.toml").write_text(CONTRACT)
    (folder / "conftest.py").touch()
    (folder / "pytest.ini").write_text("[pytest]\n")
    run_pytest(folder, "m.modelgate.toml", key=keys / "release.pem")
    return folder


def run_pytest(folder, *arguments, key):
    return run_in(folder, f"--modelserve-statement={folder}/statement.json", f"--modelserve-sign-key={key}", *arguments)


@pytest.fixture
def statement(release, keys, tmp_path):
    """Return the signed statement after a change of its content, signed again by the same key."""

    def changed(change):
        envelope = json.loads((release / "statement.json").read_text())
        content = json.loads(base64.b64decode(envelope["payload"]))
        change(content, content["predicate"]["modelserve"])
        path = tmp_path / "statement.json"
        path.write_text(json.dumps(_envelope(json.dumps(content).encode(), private_pem(keys / "release.pem"))))
        return path

    return changed


def verify(release, keys, statement=None, **others):
    return ms.verify_statement(
        statement or release / "statement.json", release / "m.onnx", trust=keys / "release.pub", **others
    )


def test_a_statement_says_which_gates_passed_on_these_bytes(release, keys):
    found = verify(release, keys, contract=release / "m.modelgate.toml", gates=["accuracy"])
    assert sorted(evidence.gate for evidence in found.gates) == ["accuracy", "size"]
    text = str(found)
    assert text.startswith(f"2 gates passed on m.onnx, sha256 {ms.open_artifact(release / 'm.onnx').sha256}\n")
    assert "onnxruntime" in text


def test_the_statement_is_one_of_in_toto(release):
    envelope = json.loads((release / "statement.json").read_text())
    content = json.loads(base64.b64decode(envelope["payload"]))
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert content["predicate"]["result"] == "PASSED"
    assert content["predicate"]["passedTests"] == ["m.modelgate.toml::accuracy", "m.modelgate.toml::size"]
    assert content["subject"] == [{"name": "m", "digest": {"sha256": ms.open_artifact(release / "m.onnx").sha256}}]


def test_securesystemslib_verifies_the_envelope(release, keys):
    dsse = pytest.importorskip("securesystemslib.dsse")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    key = SSlibKey.from_crypto(load_pem_public_key((keys / "release.pub").read_bytes()))
    envelope = json.loads((release / "statement.json").read_text())
    signatures = [{**each, "keyid": key.keyid} for each in envelope["signatures"]]
    found = dsse.Envelope.from_dict({**envelope, "signatures": signatures})
    assert found.verify([key], 1)


def test_no_key_is_in_the_statement(release, keys):
    text = (release / "statement.json").read_text()
    secret = (keys / "release.pem").read_text().splitlines()[1]
    assert secret not in text + base64.b64decode(json.loads(text)["payload"]).decode()


def first(own, gate="size"):
    return next(each for each in own["gates"] if each["evidence"]["gate"] == gate)


EDITS = {
    "edited verdict: size": lambda content, own: first(own)["evidence"].update(verdict="FAIL"),
    "failed gate: size": lambda content, own: (
        first(own)["evidence"].update(verdict="FAIL"),
        first(own)["evidence"]["quantities"][0].update(value=1e9),
    ),
    "missing gate: m.modelgate.toml::size": lambda content, own: own["gates"].remove(first(own)),
    "weaker budget: m.modelgate.toml::size was judged with max_bytes=5000": lambda content, own: first(own)["evidence"][
        "quantities"
    ][0]["budget"].update(limit=5000, argument="max_bytes=5000"),
    "weaker budget: m.modelgate.toml::accuracy was judged with min_value=0.5": lambda content, own: first(
        own, "accuracy"
    )["evidence"]["quantities"][0]["budget"].update(limit=0.5, argument="min_value=0.5"),
    "weaker confidence: m.modelgate.toml::accuracy": lambda content, own: first(own, "accuracy")["evidence"].update(
        confidence=0.6
    ),
    "repeated gate: size in .*passed in attempt 2": lambda content, own: first(own).update(attempt=2),
    "expired: it was valid until 2020-01-01": lambda content, own: own.update(expires="2020-01-01T00:00:00+00:00"),
    "from the future": lambda content, own: own.update(finished=(datetime.now(UTC) + timedelta(days=1)).isoformat()),
    "incomplete run": lambda content, own: own.update(complete=False),
    "failed run: pytest's exit status was 3": lambda content, own: own.update(exit_status=3),
    "failed run: test_x": lambda content, own: content["predicate"].update(result="FAILED", failedTests=["test_x"]),
    "edited suite": lambda content, own: content["predicate"]["configuration"].pop(),
    "other artifact: m.onnx has sha256": lambda content, own: content["subject"][0]["digest"].update(sha256="0" * 64),
    "other contract: m.modelgate.toml changed": lambda content, own: renamed_contract(content, own),
}


def renamed_contract(content, own):
    from pytest_modelserve.signing.statement import suite_digest

    configuration = content["predicate"]["configuration"]
    next(each for each in configuration if each["name"] == "m.modelgate.toml")["digest"]["sha256"] = "0" * 64
    own["suite_sha256"] = suite_digest({each["name"]: each["digest"]["sha256"] for each in configuration})


@pytest.mark.parametrize("named", EDITS)
def test_a_statement_that_vouches_for_something_else_is_refused_by_name(release, keys, statement, named):
    with pytest.raises(ms.VerificationError, match=named):
        verify(release, keys, statement(EDITS[named]), contract=release / "m.modelgate.toml")


def test_every_reason_is_listed(release, keys, statement):
    def edit(content, own):
        EDITS["incomplete run"](content, own)
        EDITS["edited verdict: size"](content, own)

    with pytest.raises(ms.VerificationError, match=r"(?s)incomplete run.*edited verdict"):
        verify(release, keys, statement(edit))


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_an_edit_without_the_key_is_refused(release, keys, tmp_path, part):
    envelope = json.loads((release / "statement.json").read_text())
    if part == "payload":
        content = base64.b64decode(envelope["payload"]).replace(b'"max_bytes=1000"', b'"max_bytes=1001"')
        envelope["payload"] = base64.b64encode(content).decode()
    else:
        envelope["signatures"][0]["sig"] = base64.b64encode(bytes(72)).decode()
    (tmp_path / "s.json").write_text(json.dumps(envelope))
    with pytest.raises(ms.VerificationError, match="edited, or signed by another key"):
        verify(release, keys, tmp_path / "s.json")


def test_another_key_another_model_and_an_unsigned_statement_are_refused(release, keys, tmp_path):
    with pytest.raises(ms.VerificationError, match=r"no signature of other.pub is valid"):
        ms.verify_statement(release / "statement.json", release / "m.onnx", trust=keys / "other.pub")
    other = tmp_path / "m.onnx"
    other.write_bytes((release / "m.onnx").read_bytes())
    flip(other, other.read_bytes().index(np.eye(2, dtype="f4").tobytes()))
    with pytest.raises(ms.VerificationError, match="other artifact"):
        ms.verify_statement(release / "statement.json", other, trust=keys / "release.pub")
    envelope = json.loads((release / "statement.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps({**envelope, "signatures": []}))
    with pytest.raises(ms.VerificationError, match="unsigned"):
        verify(release, keys, tmp_path / "s.json")


def test_a_missing_gate_is_named(release, keys):
    with pytest.raises(ms.VerificationError, match="missing gate: no_leak was not judged on this artifact"):
        verify(release, keys, gates=["no_leak"])
    with pytest.raises(ms.UsageError, match="unknown gate 'accurcy': did you mean 'accuracy'"):
        verify(release, keys, gates=["accurcy"])


def test_a_statement_of_a_newer_version_is_an_error(release, keys, statement):
    with pytest.raises(ms.InputError, match="has version 2, and this release reads up to 1"):
        verify(release, keys, statement(lambda content, own: own.update(version=2)))
    with pytest.raises(ms.InputError, match="is of type"):
        verify(release, keys, statement(lambda content, own: content.update(predicateType="https://example.org/v9")))


@pytest.mark.parametrize(
    "text", ["{}", "[]", "no JSON", '{"payload": "e30=", "payloadType": "text", "signatures": []}']
)
def test_what_is_no_statement_is_an_error(release, keys, tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ms.InputError, match=r"no signed envelope|is no JSON document|of type 'text'"):
        verify(release, keys, tmp_path / "s.json")


def test_a_signed_document_without_its_parts_is_an_error(release, keys, statement):
    for name in ("gates", "finished", "environment", "version"):
        with pytest.raises(ms.InputError, match=f"no statement of this project: KeyError: '{name}'"):
            verify(release, keys, statement(lambda content, own, name=name: own.pop(name)))


def test_the_command_answers_by_exit_status(release, keys, capsys):
    statement, model, key = (str(release / "statement.json"), str(release / "m.onnx"), str(keys / "release.pub"))
    assert main(["verify", statement, model, "--key", key, "--contract", str(release / "m.modelgate.toml")]) == 0
    assert "2 gates passed on m.onnx" in capsys.readouterr().out
    assert main(["verify", statement, model, "--key", str(keys / "other.pub")]) == 1
    assert main(["verify", statement, model, "--key", str(keys / "rsa.pub")]) == 2
    assert main(["verify", model, "--key", key, "--gate", "size"]) == 2


def test_budgets_of_slices_and_rounded_budgets_are_compared(release, keys, statement):
    def edit(content, own):
        judged = first(own, "accuracy")["evidence"]["quantities"]
        judged[0]["budget"].update(argument="min_value=0.699999")
        judged.append({**judged[0], "budget": {**judged[0]["budget"], "argument": "Slices(min_value=0.6)"}})

    assert verify(release, keys, statement(edit), contract=release / "m.modelgate.toml")


def test_an_expected_failure_is_not_counted_as_passed(release, keys, statement):
    def edit(content, own):
        first(own).update(expected=True)
        EDITS["failed gate: size"](content, own)

    text = str(verify(release, keys, statement(edit)))
    assert text.startswith("1 gate passed on m.onnx")
    assert "\n  known failure: size of m: FAIL" in text
    with pytest.raises(ms.VerificationError, match=r"missing gate: m.modelgate.toml::size"):
        verify(release, keys, statement(edit), contract=release / "m.modelgate.toml")


# How a run writes it


def test_data_of_a_contract_are_part_of_the_statement(release, keys, tmp_path):
    contract = release / "m.modelgate.toml"
    found = verify(release, keys, contract=contract)
    assert sorted(found.suite) == ["conftest.py", "m.modelgate.toml", "pytest.ini", "rows.npz"]
    moved = tmp_path / "moved"
    shutil.copytree(release, moved)
    verify(moved, keys, contract=moved / "m.modelgate.toml")
    with open(moved / "rows.npz", "ab") as file:
        file.write(b"x")
    with pytest.raises(ms.VerificationError, match=r"other data: rows.npz is not what the contract was run on"):
        verify(moved, keys, contract=moved / "m.modelgate.toml")


def test_a_contract_in_a_folder_of_its_own_names_files_beside_that_folder(release, keys, tmp_path, monkeypatch):
    for name in ("m.onnx", "rows.npz", "pytest.ini"):
        shutil.copy(release / name, tmp_path)
    contract = tmp_path / "gates" / "m.modelgate.toml"
    contract.parent.mkdir()
    contract.write_text(CONTRACT.replace('"m.onnx"', '"../m.onnx"').replace('"rows.npz"', '"../rows.npz"'))
    run_pytest(tmp_path, "gates", key=keys / "release.pem")
    monkeypatch.chdir(tmp_path)
    assert "rows.npz" in verify(tmp_path, keys, contract="gates/m.modelgate.toml").suite


def test_a_failing_run_writes_a_statement_that_is_refused(release, keys, tmp_path, capsys):
    (tmp_path / "m.onnx").write_bytes((release / "m.onnx").read_bytes())
    code = "import pytest_modelserve as ms\n\ndef test_size():\n    ms.assert_size('m.onnx', max_bytes=10)\n"
    (tmp_path / "test_m.py").write_text(code)
    (tmp_path / "pytest.ini").touch()
    assert run_pytest(tmp_path, key=keys / "release.pem") == 1
    assert "statement statement.json" in capsys.readouterr().out
    with pytest.raises(ms.VerificationError, match=r"(?s)failed run: test_m.py::test_size.*failed gate: size"):
        verify(tmp_path, keys)


def test_a_run_that_judges_no_file_writes_no_statement_and_removes_the_old_one(keys, tmp_path, capsys):
    (tmp_path / "test_x.py").write_text("def test_x(): pass")
    (tmp_path / "statement.json").write_text("{}")
    (tmp_path / "pytest.ini").touch()
    assert run_pytest(tmp_path, key=keys / "release.pem") == pytest.ExitCode.USAGE_ERROR
    assert "no gate of this run is about a file" in "".join(capsys.readouterr())
    assert not (tmp_path / "statement.json").exists()


@pytest.mark.parametrize(
    ("key", "named"),
    [(None, "MODELSERVE_SIGN_KEY"), ("rsa.pem", "of the wrong kind"), ("release.pub", "is a public key")],
)
def test_a_key_that_cannot_sign_is_an_error_before_any_test_runs(keys, pytester, key, named):
    options = [f"--modelserve-sign-key={keys / key}"] if key else []
    with pytest.raises(pytest.UsageError, match=named):
        pytester.parseconfigure("--modelserve-statement=statement.json", *options)


def test_no_other_file_is_removed_for_a_statement(keys, pytester):
    pytester.makefile(".onnx", m="weights")
    for path in ("m.onnx", "."):
        with pytest.raises(pytest.UsageError, match="is no statement and would be removed"):
            pytester.parseconfigure(f"--modelserve-statement={path}", f"--modelserve-sign-key={keys / 'release.pem'}")


@pytest.mark.parametrize("days", ["0", "-1", "nan", "soon"])
def test_a_statement_that_never_or_always_holds_is_refused(keys, pytester, days):
    with pytest.raises(pytest.UsageError, match="must be a number of days above 0"):
        pytester.parseconfigure("--modelserve-statement=s.json", f"--modelserve-statement-days={days}")
