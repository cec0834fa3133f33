import datetime
import io
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest

import pytest_modelserve as ms
from fixtures.bad_checkpoints import BAD, GOOD, checkpoint, state_dict, tensor, write_bad_checkpoints, zipped
from pytest_modelserve.scanning import scan_file
from pytest_modelserve.scanning.pickle_rules import check_pickle


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """The bad files, with the rule of each."""
    return write_bad_checkpoints(tmp_path_factory.mktemp("bad"))


def test_every_bad_checkpoint_is_named_by_its_rule(bad):
    """Before anything is loaded: the static rules do it, and no process is started."""
    assert len(bad) >= 90
    assert len(set(bad.values())) >= 40
    missed = {}
    for path, rule in bad.items():
        report = scan_file(path, mode="static")
        if rule not in [found.rule for found in report.findings if found.refuses]:
            missed[path.name] = [str(found) for found in report.findings]
    assert missed == {}


def test_no_bad_checkpoint_is_opened(bad):
    assert not any(scan_file(path).opened for path in list(bad)[::9])


@pytest.mark.parametrize("protocol", range(6))
def test_data_in_every_protocol_has_no_finding(tmp_path, protocol):
    path = tmp_path / "data.pkl"
    values = {"array": np.arange(6.0).reshape(2, 3), "list": [1, 2.5, "é", None, True], "big": 1 << 80, "set": {1, 2}}
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    assert scan_file(path).findings == ()


def test_arrays_of_numpy_have_no_finding_and_are_read_in_the_sandbox(tmp_path):
    np.savez(tmp_path / "stored.npz", x=np.ones((3, 2)), text=np.array(["a", "bb"]))
    np.savez_compressed(tmp_path / "deflated.npz", x=np.zeros((300, 200)), y=np.arange(3))
    np.save(tmp_path / "empty.npy", np.ones((3, 0)))
    np.save(tmp_path / "fields.npy", np.zeros(3, [("a", "f4"), ("b", "i8", (2,))]))
    for path in tmp_path.iterdir():
        report = scan_file(path)
        assert (report.findings, report.opened) == ((), True), path.name


def test_the_checkpoint_that_the_bad_ones_are_made_of_is_good(tmp_path):
    path = tmp_path / "good.pt"
    path.write_bytes(checkpoint(GOOD))
    assert scan_file(path, mode="static").findings == ()


def safetensors(tmp_path, header_bytes):
    path = tmp_path / "m.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    path.write_bytes(struct.pack("<Q", header_bytes) + header.ljust(header_bytes) + bytes(16))
    return path


@pytest.mark.parametrize("header_bytes", [64, 0x5D, 0x9C78])
def test_safetensors_have_no_finding_whatever_their_length_looks_like(tmp_path, header_bytes):
    """0x5d is what lzma begins with, 0x9c78 what zlib does."""
    report = scan_file(safetensors(tmp_path, header_bytes))
    assert (report.findings, report.opened) == ((), False)


def test_estimators_of_scikit_learn_are_warned_of_and_not_refused(tmp_path):
    ensemble = pytest.importorskip("sklearn.ensemble")
    import joblib

    rows = np.random.default_rng(0).random((60, 4))
    model = ensemble.GradientBoostingClassifier(n_estimators=2).fit(rows, rows[:, 0] > 0.5)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    joblib.dump(model, tmp_path / "m.joblib")
    joblib.dump(model, tmp_path / "z.joblib", compress=3)
    for path in tmp_path.iterdir():
        report = scan_file(path)
        assert {found.rule for found in report.findings} == {"pickle.library"}, path.name
        assert report.is_safe
        assert not report.opened


def test_checkpoints_of_torch_have_no_finding_and_are_loaded_in_the_sandbox(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    )
    model(torch.zeros(2, 1, 5, 5)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    values = {
        "half": torch.ones(2, 2).half(), "strided": torch.ones(2, 3).t(), "view": torch.arange(8)[2:5],
        "sparse": torch.eye(3).to_sparse(), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model.state_dict(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "values": values},
        tmp_path / "all.ckpt",
    )
    for path in tmp_path.iterdir():
        report = scan_file(path)
        assert (report.findings, report.opened) == ((), True), path.name
    torch.save(model, tmp_path / "module.pt")
    report = scan_file(tmp_path / "module.pt")
    assert [found.rule for found in report.findings] == ["pickle.library"]
    assert not report.opened


def test_what_only_shows_when_torch_loads_it_is_named_by_the_trial(tmp_path):
    """A harmless function with arguments that it refuses."""
    pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    path.write_bytes(checkpoint(state_dict(b"ctorch\nSize\nX\x01\x00\x00\x00a\x85R"), {}))
    report = scan_file(path)
    assert [found.rule for found in report.findings] == ["trial.refused"]
    assert report.opened


def test_harmless_values_that_torch_does_not_load_as_weights_are_noted(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    torch.save({"weight": torch.ones(2), "saved": datetime.date(2026, 11, 29), "classes": np.arange(3)}, path)
    report = scan_file(path)
    assert [(found.rule, found.severity) for found in report.findings] == [("trial.not-run", "note")]


def test_nothing_is_called_while_a_pickle_is_read(tmp_path, monkeypatch):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps(Hostile()))
    monkeypatch.setattr("pickle.loads", None)
    report = scan_file(path)
    assert "pickle.global" in [found.rule for found in report.findings]
    assert "io.open" in str(report)
    assert not (tmp_path / "made").exists()


def test_the_gate_and_the_command_take_checkpoints(bad, tmp_path):
    path = next(path for path in bad if path.suffix == ".pt")
    with pytest.raises(ms.GateFailure, match=r"pickle.global.*os.system"):
        ms.assert_artifact_safe(path)
    good = tmp_path / "x.npy"
    np.save(good, np.ones(3))
    assert ms.assert_artifact_safe(good).passed


@pytest.mark.parametrize("where", ["file", "checkpoint"])
def test_random_bytes_in_place_of_opcodes_never_raise(where):
    """600 mutants of a pickle: each has a finding or reads to its end."""
    generator = np.random.default_rng(7)
    content = pickle.dumps({"a": np.arange(5), "b": [1, "x", (2, 3)]}) if where == "file" else GOOD
    for _ in range(300):
        mutant = bytearray(content)
        mutant[generator.integers(len(mutant))] = generator.integers(256)
        result = check_pickle(io.BytesIO(mutant), "mutant", persistent=True)
        assert result.findings or result.ended


def test_mutants_of_a_checkpoint_never_raise(tmp_path):
    generator = np.random.default_rng(8)
    content = checkpoint(GOOD)
    path = tmp_path / "m.pt"
    for _ in range(300):
        mutant = bytearray(content)
        mutant[generator.integers(len(mutant))] ^= 1 << generator.integers(8)
        path.write_bytes(mutant)
        scan_file(path, mode="static")


def test_a_large_pickle_of_plain_values_is_read_in_bounded_steps(monkeypatch):
    monkeypatch.setattr("pytest_modelserve.scanning.pickle_rules._MOST_OPCODES", 200_000)
    result = check_pickle(io.BytesIO(pickle.dumps(list(range(400_000)))), "long")
    assert [found.rule for found in result.findings] == ["pickle.count"]


def test_values_that_expand_a_thousandfold_are_unpacked_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("pytest_modelserve.scanning.pickle_rules._MOST_EXPANDED", 1 << 20)
    values = [zlib.compress(bytes(300_000)) + bytes([number]) for number in range(9)]
    assert check_pickle(io.BytesIO(pickle.dumps(values[:3])), "few").findings == []
    for name, many in (("many", values), ("inside", [pickle.dumps(values)])):
        (found,) = check_pickle(io.BytesIO(pickle.dumps(many)), name).findings
        message = "texts or bytes that expand to more than 1,048,576 bytes"
        assert (found.rule, found.message) == ("pickle.expansion", message)


def test_words_that_begin_like_an_archive_are_text():
    assert (
        check_pickle(io.BytesIO(pickle.dumps(["BZhang", "BZh4LJ0N_9Zl8x", "H4sIAAAAAAAAAA"])), "words").findings == []
    )


def test_a_long_text_of_white_space_is_read_in_one_pass():
    assert check_pickle(io.BytesIO(pickle.dumps("H" + " " * 500_000 + "~")), "spaces").findings == []


def test_an_archive_with_half_of_an_extra_field_is_malformed(tmp_path):
    entry = zipfile.ZipInfo("archive/data.pkl")
    entry.extra = struct.pack("<HH", 1, 16) + bytes(8)
    path = tmp_path / "cut.pt"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr(entry, GOOD)
    assert "zip.malformed" in [found.rule for found in scan_file(path, mode="static").findings]


def test_an_archive_written_with_data_descriptors_is_read(tmp_path):
    """Writers to a pipe put sizes behind the entries."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as writer:
        for name, content in {"archive/data.pkl": state_dict(tensor()), "archive/data/0": bytes(16)}.items():
            writer.writestr(name, content)
    path = tmp_path / "m.pt"
    path.write_bytes(pipe.content)
    assert scan_file(path, mode="static").findings == ()


def test_the_extra_names_what_a_pickle_would_call(tmp_path):
    pytest.importorskip("modelaudit_picklescan")
    path = tmp_path / "m.pkl"
    path.write_bytes(BAD["pickle.global", "alone", ".pkl"]())
    notes = [found.message for found in scan_file(path).findings if found.rule == "pickle.scanner"]
    assert any("os.system" in note for note in notes)


def test_an_empty_archive_is_no_checkpoint(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(zipped({}))
    assert [found.rule for found in scan_file(path).findings] == ["checkpoint.unknown-archive"]
