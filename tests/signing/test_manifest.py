import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.signing import untrusted_files

ROWS = np.ones((2, 4), np.float32)


def edit(manifest, **changes):
    """Change keys of the document of a manifest."""
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_a_folder_as_it_was_passes(models):
    manifest = ms.write_manifest(models)
    evidence = ms.assert_untampered(models, manifest)
    assert (evidence.value, evidence.n) == (0, 2)
    entries = json.loads(manifest.read_text())["files"]
    assert [entry["path"] for entry in entries] == ["m.onnx", "weights/w.bin"]
    assert [entry["size"] for entry in entries] == [(models / entry["path"]).stat().st_size for entry in entries]


def test_digests_are_those_of_sha256sum(models):
    entries = json.loads(ms.write_manifest(models).read_text())["files"]
    command = subprocess.run(["sha256sum", "m.onnx", "weights/w.bin"], cwd=models, capture_output=True, text=True)
    assert [entry["sha256"] for entry in entries] == [line.split()[0] for line in command.stdout.splitlines()]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "m.onnx").write_bytes(b"x"), "'m.onnx' has 1 bytes"),
        (lambda folder: flip(folder / "weights/w.bin", 7), "'weights/w.bin' has sha256"),
        (lambda folder: (folder / "m.onnx").unlink(), "'m.onnx' is missing"),
        (lambda folder: (folder / "new\nline").touch(), r"'new\\nline' is not in the manifest"),
        (lambda folder: (folder / "weights/link").symlink_to("/etc/passwd"), "'weights/link' is not in the manifest"),
        (lambda folder: swap(folder, os.symlink), "'m.onnx' is a link"),
        (lambda folder: swap(folder, os.link), "'m.onnx' is a hard link"),
        (lambda folder: fifo(folder / "m.onnx"), "'m.onnx' is a FIFO"),
        (lambda folder: folder_link(folder), "'weights' is not in the manifest"),
    ],
)
def test_every_change_of_a_file_is_named(models, change, named):
    ms.write_manifest(models)
    change(models)
    with pytest.raises(ms.GateFailure, match=named):
        ms.assert_untampered(models)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def swap(folder, link):
    """Replace the model by a link to the same content."""
    (folder / "m.onnx").rename(folder.parent / "elsewhere.onnx")
    link(folder.parent / "elsewhere.onnx", folder / "m.onnx")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def folder_link(folder):
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


def test_a_manifest_is_not_written_over_links(models):
    (models / "link").symlink_to("m.onnx")
    with pytest.raises(ms.ArtifactError, match="'link' is a link, which is not followed"):
        ms.write_manifest(models)
    assert not (models / "modelserve.manifest.json").exists()


def test_a_manifest_outside_the_folder_serves_as_well(models, tmp_path):
    manifest = ms.write_manifest(models, tmp_path / "release.json")
    assert ms.assert_untampered(models, manifest).passed
    (models / "modelserve.manifest.json").touch()
    with pytest.raises(ms.GateFailure, match=r"'modelserve.manifest.json' is not in the manifest"):
        ms.assert_untampered(models, manifest)


ENTRY = {"path": "m.onnx", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"files": [{**ENTRY, "path": "../secret"}]}, r"'../secret' is not the path of a file inside"),
        ({"files": [{**ENTRY, "path": "a/../../secret"}]}, "is not the path of a file inside"),
        ({"files": [{**ENTRY, "path": "/etc/passwd"}]}, "is not the path of a file inside"),
        ({"files": [{**ENTRY, "path": "C:\\secret"}]}, "is not the path of a file inside"),
        ({"files": [{**ENTRY, "path": "./m.onnx"}]}, "is not the path of a file inside"),
        ({"files": [ENTRY, ENTRY]}, "has two entries for 'm.onnx'"),
        ({"files": [{**ENTRY, "sha256": "0" * 40}]}, "the entry of 'm.onnx' has no sha256"),
        ({"files": [{**ENTRY, "size": -1}]}, "the entry of 'm.onnx' has no sha256 in 64 digits, or no size"),
        ({"files": [{**ENTRY, "size": "1"}]}, "is not a manifest"),
        ({"files": [{**ENTRY, "mode": "0644"}]}, "is not a manifest"),
        ({"algorithm": "sha1"}, "has the algorithm 'sha1': only 'sha256' is accepted"),
        ({"version": 0}, "is not a manifest"),
        ({"folder": ".."}, r"modelserve.manifest.json: '..' is not the path"),
        ({"version": 2}, "has version 2, and this release reads up to 1"),
    ],
)
def test_invalid_manifests_are_refused_by_name(models, changes, named):
    edit(ms.write_manifest(models), **changes)
    with pytest.raises(ms.InputError, match=named):
        ms.assert_untampered(models)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"version": 1, "version": 1}', "the key 'version' stands twice"),
        ("[" * 100_000, "too deeply nested|recursion"),
        ("[]", "is not a manifest"),
        ('{"version": NaN}', "NaN is no JSON number"),
        ("", "is no JSON document"),
        ("\xff", "is no JSON document"),
    ],
)
def test_what_is_no_manifest_is_refused(models, text, named):
    (models / "modelserve.manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ms.InputError, match=named):
        ms.assert_untampered(models)


def test_a_folder_or_a_manifest_that_does_not_exist_is_an_error(models, tmp_path):
    with pytest.raises(ms.UsageError, match="is missing"):
        ms.assert_untampered(tmp_path / "nothing")
    with pytest.raises(ms.UsageError, match="a file: give the folder that holds it"):
        ms.write_manifest(models / "m.onnx")
    with pytest.raises(ms.InputError, match=r"'modelserve.manifest.json': No such file"):
        ms.assert_untampered(models)


def test_a_device_is_not_read():
    with pytest.raises(ms.ArtifactError, match="'zero' is a device"):
        untrusted_files.digest_file(untrusted_files.Path("/dev"), "zero")


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path):
    path, is_done = tmp_path / "log", threading.Event()
    path.write_bytes(bytes(1 << 20))

    def grow():
        with open(path, "ab", buffering=0) as file:
            while not is_done.is_set():
                file.write(bytes(4096))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(ms.ArtifactError, match="'log' changed while it was read"):
            _ = [untrusted_files.digest_file(tmp_path, "log") for _ in range(1000)]
    finally:
        is_done.set()
        writer.join()


def test_a_folder_of_the_path_must_be_no_link(models, tmp_path):
    (models / "weights").rename(tmp_path / "elsewhere")
    (models / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ms.ArtifactError, match=r"'weights/w.bin' is a link"):
        untrusted_files.digest_file(models, "weights/w.bin")


# serve(manifest=)


def test_a_model_that_agrees_is_served_from_a_private_copy(models):
    manifest = ms.write_manifest(models)
    with ms.serve(models / "m.onnx", manifest=manifest) as predictor:
        copy = predictor.artifact.path.parent
        assert copy.stat().st_mode & 0o077 == 0
        (models / "weights/w.bin").write_bytes(bytes(48))  # too late
        np.testing.assert_array_equal(predictor.predict(ROWS)["y"], np.full((2, 3), 4.0))
        assert predictor.subject.name == "m"
    assert not copy.exists()


@pytest.mark.parametrize("name", ["m.onnx", "weights/w.bin"])
def test_a_changed_byte_is_refused_before_anything_is_opened(models, name):
    manifest = ms.write_manifest(models)
    flip(models / name, 5)
    with pytest.raises(ms.ArtifactError, match=f"{name}' has sha256"):
        ms.serve(models / "m.onnx", manifest=manifest)


def test_a_model_file_is_not_parsed_before_its_digest_is_known(models, monkeypatch):
    manifest = ms.write_manifest(models)
    flip(models / "m.onnx", 5)
    monkeypatch.setattr("pytest_modelserve.signing.signature.describe_file", None)
    monkeypatch.setattr("pytest_modelserve.artifacts.read_graph", None)
    with pytest.raises(ms.ArtifactError, match=r"'m.onnx' has sha256"):
        ms.serve(models / "m.onnx", manifest=manifest)


def test_external_data_that_the_manifest_lacks_are_refused(models):
    manifest = ms.write_manifest(models)
    document = json.loads(manifest.read_text())
    edit(manifest, files=document["files"][:1])
    with pytest.raises(ms.ArtifactError, match=r"'weights/w.bin' is not in the manifest"):
        ms.serve(models / "m.onnx", manifest=manifest)


def test_paths_are_relative_to_the_folder_of_the_manifest_around_the_model(models):
    manifest = ms.write_manifest(models.parent)
    with ms.serve(models / "m.onnx", manifest=manifest) as predictor:
        assert predictor.predict(ROWS)["y"].shape == (2, 3)


def test_a_manifest_beside_the_folder_or_of_a_folder_that_moved_serves_as_well(models, tmp_path):
    manifest = ms.write_manifest(models, tmp_path / "release.json")
    ms.serve(models / "m.onnx", manifest=manifest).close()
    models.rename(tmp_path / "deployed")
    ms.serve(tmp_path / "deployed/m.onnx", manifest=manifest).close()
    edit(manifest, folder="../elsewhere")
    with pytest.raises(ms.InputError, match=r"'../elsewhere' is not the path of a file inside"):
        ms.serve(tmp_path / "deployed/m.onnx", manifest=manifest)


def test_an_artifact_is_served_with_its_name_if_it_is_unchanged(models):
    manifest = ms.write_manifest(models)
    artifact = ms.open_artifact(models / "m.onnx", name="champion")
    with ms.serve(artifact, manifest=manifest) as predictor:
        assert predictor.subject == artifact.subject
    (models / "weights/w.bin").write_bytes(bytes(48))
    manifest = ms.write_manifest(models)
    with pytest.raises(ms.ArtifactError, match="changed after it was opened"):
        ms.serve(artifact, manifest=manifest)


@pytest.mark.parametrize("target", [np.ones((2, 2)), lambda x: x, "outputs.npy"])
def test_a_manifest_applies_to_model_files_alone(target):
    with pytest.raises(ms.UsageError, match="manifest applies to ONNX files only"):
        ms.serve(target, manifest="modelserve.manifest.json")


def test_no_private_copy_outlives_the_process(models):
    manifest = ms.write_manifest(models)
    code = f"import pytest_modelserve as ms; print(ms.serve({str(models / 'm.onnx')!r}, manifest={str(manifest)!r}).artifact.path.parent)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not os.path.exists(printed.strip())
