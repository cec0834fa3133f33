from __future__ import annotations

import json

import onnx
import pytest

from pytest_modelserve.artifacts import LineageStep
from pytest_modelserve.artifacts.metadata import METADATA_KEY, Label, read_label, write_label
from pytest_modelserve.errors import ArtifactError, UsageError

STEP = LineageStep("export", {"dynamic": ("batch",), "opset": 20}, "ab" * 32, {"torch": "2.13.0"}, ("verified",))


def _metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_a_label_is_read_back_as_it_was_written():
    model = onnx.ModelProto()
    write_label(model, Label("digits", "int8", (STEP, STEP)))
    assert read_label(model, default_name="other") == Label("digits", "int8", (STEP, STEP))


def test_settings_are_kept_as_json_gives_them_back():
    assert STEP.settings == {"dynamic": ["batch"], "opset": 20}


def test_writing_a_label_replaces_the_earlier_one_and_keeps_other_metadata():
    model = onnx.ModelProto()
    model.metadata_props.add(key="author", value="us")
    write_label(model, Label("first", "", ()))
    write_label(model, Label("second", "", ()))
    assert len(model.metadata_props) == 2
    assert _metadata(model)["author"] == "us"
    assert json.loads(_metadata(model)[METADATA_KEY])["name"] == "second"


def test_a_model_without_a_label_takes_the_default_name():
    assert read_label(onnx.ModelProto(), default_name="model") == Label("model", "", ())


@pytest.mark.parametrize("value", [float("nan"), object(), float("inf")])
def test_settings_that_json_cannot_hold_are_refused(value):
    with pytest.raises(UsageError, match=r"^settings of the lineage step 'train' are not valid JSON: "):
        LineageStep("train", {"rate": value}, None, {})


def test_steps_can_be_hashed_although_settings_are_a_mapping():
    assert len({STEP, STEP}) == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "name": "a", "variant": "", "lineage": [3]}']
)
def test_a_damaged_label_is_told(text):
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=text)
    with pytest.raises(ArtifactError, match=r"^its metadata entry 'pytest_modelserve' cannot be read: "):
        read_label(model, default_name="model")


def test_a_label_of_a_newer_schema_names_the_way_out():
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value='{"schema": 2}')
    with pytest.raises(ArtifactError) as caught:
        read_label(model, default_name="model")
    assert str(caught.value) == (
        "its metadata entry 'pytest_modelserve' has schema 2, and this version of pytest-modelserve reads up to 1: "
        "install a newer version"
    )
