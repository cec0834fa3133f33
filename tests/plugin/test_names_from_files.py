"""Names in model and data files are hostile text: no report and no terminal shows them raw."""

import json
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import ModelServeWarning, printable

onnx = pytest.importorskip("onnx")

HOSTILE = {
    "color": "\x1b[31mred",
    "8-bit control": "\x9b31mred",
    "JUnit": "bad</testcase></testsuite>",
    "annotation": "a\n::error::pwned",
    "lines": "first\r\nsecond\u2028third",
    "right to left": "exe.\u202egnp",
    "NUL": "a\0b",
    "a million": "m" * 1_000_000,
}
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]|^::error::pwned|m{3000}", re.MULTILINE)
MARKUP = "bad</testcase>"
ALL_SHORT = " ".join(text for text in HOSTILE.values() if len(text) < 100)


def model_named(path, text):
    """Write a model in which every name is `text`: of the graph, tensors, nodes, metadata."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Relu", [text], [f"{text}'"], name=text)],
        text,
        [helper.make_tensor_value_info(text, onnx.TensorProto.FLOAT, [f"{text}n", 2])],
        [helper.make_tensor_value_info(f"{text}'", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=text)
    label = {"schema": 1, "name": text, "variant": text, "lineage": []}
    helper.set_model_props(model, {"pytest_modelserve": json.dumps(label)})
    onnx.save(model, path)


def test_no_report_of_a_run_shows_a_name_raw(pytester, monkeypatch):
    model_named(pytester.path / "short.onnx", ALL_SHORT)
    model_named(pytester.path / "long.onnx", HOSTILE["a million"])
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makepyfile(
        """
        import numpy as np, pytest, pytest_modelserve as ms

        @pytest.mark.parametrize("model", ["short.onnx", "long.onnx"])
        class TestModel:
            def test_fails_on_its_size(self, model):
                ms.assert_size(model, max_bytes=1)

            def test_raises_an_input_error(self, model):
                with ms.serve(model) as predictor:
                    print(predictor, predictor.signature, ms.open_artifact(model))
                    predictor.predict(np.zeros((2, 2), np.float64))
        """
    )
    kinds = ("json", "html", "markdown", "code-quality", "ctrf", "prometheus", "otlp")
    options = [f"--modelserve-{kind}=report.{kind}" for kind in kinds]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rA", "--junitxml=junit.xml", *options)
    result.assert_outcomes(failed=4)
    names = ("junit.xml", "summary.md", *(f"report.{kind}" for kind in kinds))
    shown = {name: (pytester.path / name).read_bytes().decode() for name in names}
    shown["terminal"] = "\n".join([*result.outlines, *result.errlines])
    assert all("x1b[31mred" in each for each in shown.values())
    assert {name: found[0] for name, each in shown.items() if (found := RAW.search(each))} == {}
    assert MARKUP not in shown["report.html"] + shown["junit.xml"]
    assert len(ElementTree.fromstring(shown["junit.xml"]).findall("testsuite/testcase")) == 4


def test_the_check_of_a_model_file_shows_no_name_raw(tmp_path):
    from pytest_modelserve.contracts.model_file import ModelFile, Options

    model_named(tmp_path / "bad.onnx", ALL_SHORT)
    file = ModelFile(tmp_path / "bad.onnx", Options())
    assert not RAW.search(str(file.safety))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_errors_about_columns_of_a_file_show_no_name_raw(text, tmp_path):
    profile = ms.reference_profile({text: np.arange(50.0), "b": np.arange(50.0)})
    with pytest.raises(ms.GateFailure) as error:
        ms.assert_no_drift({"b": np.arange(50.0)}, profile, max_distance=0.1)
    assert not RAW.search(str(error.value))


def test_warnings_show_no_name_raw():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("\x1b[2J", ModelServeWarning, stacklevel=1)
    assert str(caught[0].message) == r"\x1b[2J"


def test_lines_of_an_error_stay_lines_and_its_end_stays_readable():
    error = ms.InputError(f"input {'m' * 1_000_000} is unknown: pass x\n\tits log")
    first, second = str(error).split("\n")
    assert len(first) < 2_100
    assert first.endswith("is unknown: pass x")
    assert second == "    its log"


def test_printable_text_does_not_change_when_it_is_made_printable_again():
    for text in HOSTILE.values():
        assert printable(printable(text)) == printable(text)
