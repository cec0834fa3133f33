"""What a test sees of an assertion that rejects its arguments."""

import inspect

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.assertions import assertion


def shown_functions(error):
    """Return the functions whose lines pytest shows."""
    return [entry.name for entry in error.traceback.filter(error)]


@pytest.mark.parametrize(
    ("labels", "options"), [([0, 1, 2], {"metric": "f1"}), ([0, 1, 1], {"metric": "f_one"})], ids=["input", "usage"]
)
def test_rejected_argument_shows_the_line_of_the_call_alone(labels, options):
    predictor = ms.serve(lambda x: np.eye(3)[[0, 1, 2]])
    with pytest.raises((ms.InputError, ms.UsageError)) as error:
        ms.assert_accuracy(predictor, np.ones((3, 2)), labels, min_value=0.5, **options)
    assert shown_functions(error) == ["test_rejected_argument_shows_the_line_of_the_call_alone"]


def test_error_of_this_package_inside_a_function_of_the_user_shows_that_function():
    def model(x):
        raise ms.InputError("rows of another year")

    with pytest.raises(ms.InputError, match="rows of another year") as error:
        ms.assert_accuracy(ms.serve(model), np.ones((3, 2)), [0, 1, 1], min_value=0.5)
    assert shown_functions(error)[-1] == "model"


def test_file_that_onnxruntime_refuses_shows_the_line_of_the_call_alone(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ms.ArtifactError) as error:
        ms.assert_size(path, max_bytes=1)
    assert shown_functions(error) == ["test_file_that_onnxruntime_refuses_shows_the_line_of_the_call_alone"]
    assert error.value.__cause__ is None


def test_argument_that_a_dataclass_refuses_shows_the_line_of_the_call_alone():
    with pytest.raises(ms.UsageError) as error:
        ms.assert_accuracy([0, 1, 1], labels=[0, 1, 1], min_value=0.5, sampling={"block": 0})
    assert shown_functions(error) == ["test_argument_that_a_dataclass_refuses_shows_the_line_of_the_call_alone"]


def test_stage_of_the_fixture_shows_the_line_of_the_call_alone(modelserve):
    with pytest.raises(ms.UsageError) as error:
        modelserve.serve(None)
    assert shown_functions(error) == ["test_stage_of_the_fixture_shows_the_line_of_the_call_alone"]


def test_error_of_a_model_of_the_user_is_kept_as_the_cause():
    def model(x):
        raise KeyError("no such row")

    with pytest.raises(KeyError) as error:
        ms.assert_accuracy(ms.serve(model), np.ones((3, 2)), [0, 1, 1], min_value=0.5)
    assert shown_functions(error)[-1] == "model"


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (
            4,
            {},
            "5 arguments by position, at most 4 can be (candidate, reference, inputs, labels): give the others by n",
        ),
        (
            3,
            {"min_drop": 0.1},
            "unknown argument 'min_drop': did you mean 'max_drop'? Known: 'candidate', 'reference',",
        ),
        (
            0,
            {"max_drop": 0.1},
            "missing a required argument: 'reference': pass candidate, reference, inputs, labels, and",
        ),
    ],
    ids=["position", "unknown", "missing"],
)
@pytest.mark.parametrize("gate", [ms.assert_accuracy_parity, ms.measure_accuracy_parity], ids=["assert", "measure"])
def test_arguments_that_a_gate_does_not_take_are_named(gate, args, options, message):
    with pytest.raises(ms.UsageError) as error:
        gate([0, 1], *[[0, 1]] * args, **options)
    assert str(error.value).startswith(message)


LABELS = np.array([0, 1, 2] * 100)
WRONG = np.zeros(300, int)


def test_label_names_the_check_in_evidence_text_and_repr():
    evidence = ms.measure_accuracy(np.eye(3)[WRONG], labels=LABELS, min_value=0.9, label="night images")
    assert evidence.label == "night images"
    assert str(evidence).startswith("accuracy [night images]: ")
    assert repr(evidence).startswith("<Evidence accuracy [night images] of ")
    assert ms.Evidence.from_json(evidence.to_json()).label == "night images"
    with pytest.raises(ms.GateFailure, match=r"^accuracy \[night images\]: "):
        ms.assert_accuracy(np.eye(3)[WRONG], labels=LABELS, min_value=0.9, label="night images")


def test_label_is_checked_before_anything_is_measured():
    def model(x):
        raise AssertionError("called")

    with pytest.raises(ms.UsageError, match=r'label must be a string, for example label="night images", got int'):
        ms.measure_accuracy(model, np.ones((3, 2)), [0, 1, 1], min_value=0.5, label=3)
    with pytest.raises(ms.UsageError, match="label must have at most 200 characters, got 300"):
        ms.assert_accuracy(model, np.ones((3, 2)), [0, 1, 1], min_value=0.5, label="x" * 300)


@pytest.mark.parametrize("name", [name for pair in ms._GATES.items() for name in (pair[0], pair[1][1])])
def test_every_gate_documents_its_label(name):
    gate = getattr(ms, name)
    assert list(inspect.signature(gate).parameters)[-1] == "label"
    assert "\n    label: Name of this check" in inspect.getdoc(gate)


def test_label_stands_in_the_table_and_the_json_document(pytester):
    pytester.makepyfile(
        """
        import numpy as np
        import pytest_modelserve as ms

        def test_night():
            ms.assert_accuracy(np.eye(2)[[0, 1] * 50], labels=[0, 1] * 50, min_value=0.9, label="night images")
        """
    )
    done = pytester.runpytest_subprocess("--modelserve-json=run.json", "--modelserve-html=run.html")
    done.stdout.fnmatch_lines(["*accuracy [[]night images[]] *PASS*"])
    assert '"label": "night images"' in (pytester.path / "run.json").read_text("utf-8")
    assert "accuracy [night images]" in (pytester.path / "run.html").read_text("utf-8")


X = np.zeros((300, 2), np.float32)
ROWS_MODEL = ms.serve(lambda x: np.eye(2)[np.zeros(len(x), int)], name="model")
ZEROS = np.zeros(300, int)


@pytest.mark.parametrize(
    ("gate", "arguments", "options", "message"),
    [
        ("accuracy", (ROWS_MODEL, X, ZEROS), {"min_value": "0.9"}, "min_value must be a number, got the text '0.9'"),
        (
            "accuracy",
            (ROWS_MODEL, X, ZEROS),
            {"min_value": 0.9, "confidence": "95"},
            "confidence must be a number, got",
        ),
        ("size", ("model.onnx",), {"max_bytes": "1MB"}, "max_bytes must be a number, got the text '1MB'"),
        (
            "accuracy",
            (ROWS_MODEL, X, ZEROS),
            {"min_value": 0.9, "slices": ["site"]},
            "slices must be a frame, or map names to columns",
        ),
        (
            "accuracy",
            (ROWS_MODEL, X, ZEROS),
            {"min_value": 0.9, "sampling": ZEROS},
            "sampling must be ms.Sampling(groups=",
        ),
        (
            "accuracy_parity",
            (ROWS_MODEL, X, ROWS_MODEL, ZEROS),
            {"max_drop": 0.1},
            "inputs is the predictor model: pass the",
        ),
        ("output_parity", (ROWS_MODEL, X, ROWS_MODEL), {}, "inputs is the predictor model: pass the models first"),
        (
            "relation",
            (ROWS_MODEL, X, ms.relations.determinism),
            {},
            "relation is the class determinism: call it, as ms.rel",
        ),
        ("relation", (ROWS_MODEL, X, "determinism"), {}, "relation must be one of ms.relations, such as "),
        ("relation", (ROWS_MODEL, ms.relations.determinism(), X), {}, "relation must be one of ms.relations, such as "),
        (
            "relation",
            (ROWS_MODEL, X, [ms.relations.determinism()]),
            {},
            "relation must be one relation, got several: call",
        ),
        (
            "no_drift",
            (X, X),
            {"max_distance": 0.1},
            "profile must be a ReferenceProfile; got ndarray: pass reference_prof",
        ),
    ],
)
def test_wrong_and_swapped_arguments_show_the_right_call(gate, arguments, options, message):
    with pytest.raises(ms.UsageError) as error:
        getattr(ms, f"assert_{gate}")(*arguments, **options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("corruptions", "message"),
    [
        ("noise", "corruptions must be a list, got str: pass corruptions=[ms.corruptions.noise(low=0, high=255)]"),
        (ms.corruptions.noise(low=0, high=1), "corruptions must be a list, got Corruption: pass corruptions=["),
        ([ms.corruptions.noise], "corruptions holds noise, which is no corruption: pass corruptions=[ms.corruptions.n"),
        (["noise"], "corruptions holds the text 'noise': pass ms.corruptions.noise(...), with the range of the inputs"),
        ([3], "corruptions holds 3, which is no corruption"),
    ],
)
def test_what_is_no_list_of_corruptions_shows_the_right_call(corruptions, message):
    with pytest.raises(ms.UsageError) as error:
        ms.assert_corruption_accuracy(ROWS_MODEL, X, ZEROS, corruptions=corruptions, max_drop=0.1)
    assert str(error.value).startswith(message)


def test_measurement_without_a_budget_does_not_pass_as_an_assertion():
    measured = ms.measure_accuracy(np.eye(3)[WRONG], labels=LABELS, min_value=0.9).without_budgets()

    def measure():
        return measured

    with pytest.raises(TypeError, match="has no quantity with a budget"):
        assertion("assert_it", measure)()
