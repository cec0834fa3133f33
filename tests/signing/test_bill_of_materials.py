import hashlib
import json

import onnx
import pytest

import pytest_modelserve as ms
from pytest_modelserve.__main__ import main
from pytest_modelserve.artifacts import LineageStep, save_artifact


@pytest.fixture
def variant(models, tmp_path):
    """A model with a lineage of one step."""
    model = onnx.load(models / "m.onnx")
    step = LineageStep(
        "compression", {"recipe": "simplify"}, "0" * 64, {"onnxsim": "0.8.1", "onnx_ir": "1.0"}, ("a note",)
    )
    return save_artifact(model, tmp_path / "v.onnx", name="champion", variant="simplified", lineage=[step])


def test_files_are_listed_with_their_sha256(models):
    bom = ms.model_bom(models / "m.onnx")
    files = {each["name"]: each["hashes"][0]["content"] for each in bom["components"] if each["type"] == "file"}
    names = ("m.onnx", "weights/w.bin")
    assert files == {name: hashlib.sha256((models / name).read_bytes()).hexdigest() for name in names}
    assert "hashes" not in bom["metadata"]["component"]  # no other tool knows the digest of several files


def test_inputs_outputs_and_lineage_are_named(variant):
    model = ms.model_bom(variant)["metadata"]["component"]
    assert model["name"] == "champion"
    assert model["hashes"] == [{"alg": "SHA-256", "content": variant.sha256}]
    assert model["modelCard"]["modelParameters"]["inputs"] == [{"format": "x: float32[n, 4]"}]
    (step,) = model["pedigree"]["ancestors"]
    assert step["name"] == "1: compression"
    assert {"name": "modelserve:parent", "value": variant.lineage[0].parent} in step["properties"]


def test_the_packages_of_the_steps_are_no_part_of_the_model(variant):
    packages = {each["name"]: each for each in ms.model_bom(variant)["components"] if each["type"] == "library"}
    assert {name: each["purl"] for name, each in packages.items()} == {
        "onnxsim": "pkg:pypi/onnxsim@0.8.1",
        "onnx_ir": "pkg:pypi/onnx-ir@1.0",
    }
    assert {each["scope"] for each in packages.values()} == {"excluded"}


def test_the_same_model_has_the_same_document(models):
    assert ms.model_bom(models / "m.onnx") == ms.model_bom(ms.open_artifact(models / "m.onnx"))


def test_the_document_is_valid_cyclonedx(models, variant):
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    for model in (models / "m.onnx", variant):
        assert validator.validate_str(json.dumps(ms.model_bom(model))) is None


def test_the_command_writes_the_document(models, capsys):
    assert main(["bom", str(models / "m.onnx")]) == 0
    assert json.loads((models / "m.cdx.json").read_text()) == ms.model_bom(models / "m.onnx")
    assert main(["bom", str(models / "nothing.onnx")]) == 2
    assert "there is no such file" in capsys.readouterr().err
