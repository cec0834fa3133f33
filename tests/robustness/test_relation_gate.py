"""The relation gate: its failure text, the counterexample that it saves, its seeds, and what it refuses."""

import numpy as np
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor

r = ms.relations


def planted(x):
    """The first feature, but for rows in which features 2 and 7 are both large."""
    return np.where((x[:, 2] > 0.5) & (x[:, 7] > 0.5), np.inf, x[:, 0])


@pytest.fixture
def quiet_rows():
    """Rows of which each has at most one of the two features that the fault needs."""
    rows = np.zeros((2, 10), np.float32)
    rows[0, 2] = rows[1, 7] = 0.8
    rows[:, 0] = [0.25, 0.5]
    return rows


def test_a_failure_shows_the_features_the_outputs_the_file_and_an_example(quiet_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    names = ["income", "b", "age", "d", "e", "f", "g", "debt", "i", "j"]
    with pytest.raises(ms.GateFailure) as error:
        ms.assert_relation(ms.serve(planted, name="credit"), quiet_rows, r.finite_outputs(), feature_names=names)
    (path,) = (tmp_path / ".modelserve" / "counterexamples").glob("*.npz")
    text = f"""\
relation: finite outputs is violated

  finite outputs: violations 1
  method     search without a confidence level, 5 fixed and 0 generated rows, seed 0, n = 5 candidates
  budget     at most 0
  verdict    FAIL: the value lies above the budget

  finite inputs have outputs without NaN and infinities
  1 of 1 values of output 'output' are not finite, the first is inf
  1 of 10 features differs from base row 0 (2 before minimization)
    debt   0.0 → 0.6
  output 'output'  0.25 → inf
  saved as {path.relative_to(tmp_path)}
  @example({{'input': np.array([[0.25, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0, 0.6, 0.0, 0.0]], dtype='float32')}})
  candidate  credit
  next       rerun with these rows and candidates=0; fix the model, or the relation if it claims too much"""
    assert str(error.value) == text


def test_saved_rows_violate_the_relation_again(quiet_rows, tmp_path):
    predictor = ms.serve(planted)
    ms.measure_relation(predictor, quiet_rows, r.finite_outputs(), save_to=tmp_path)
    (path,) = tmp_path.glob("*.npz")
    rows = ms.strategies.saved(path)["input"]
    again = ms.measure_relation(predictor, rows, r.finite_outputs(), candidates=0, save_to=None)
    assert (again.verdict, again.n) == (ms.Verdict.FAIL, 1)
    assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_each_counterexample_of_a_test_has_a_file_of_its_own(rows, tmp_path):
    """Two inputs, two features, and two sets of rows: one relation, six failures."""
    model = ms.serve(lambda feed: -feed["a"][:, :2].sum(axis=1) - feed["b"][:, :2].sum(axis=1))
    for part in (rows[:10], rows[10:]):
        for name, feature in (("a", 0), ("b", 0), ("b", 1)):
            relation = r.monotone(feature, input=name)
            evidence = ms.measure_relation(model, {"a": part, "b": part}, relation, candidates=0, save_to=tmp_path)
            assert f"feature {feature} of input {name!r}" in evidence.findings[1]
    assert len(list(tmp_path.glob("*.npz"))) == 6
    again = ms.measure_relation(model, {"a": part, "b": part}, relation, candidates=0, save_to=tmp_path)
    assert again.verdict is ms.Verdict.FAIL
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_feature_of_a_relation_is_named(rows):
    model = ms.serve(lambda feed: -feed["b"][:, 1])
    names = [f"{name}{column}" for name in "ab" for column in range(rows.shape[1])]
    both = {"a": rows, "b": rows}
    evidence = ms.measure_relation(model, both, r.monotone(1, input="b"), feature_names=names, save_to=None)
    assert "feature 1 is 'b1'" in evidence.findings


def test_without_candidates_only_the_given_rows_are_checked(rows):
    predicted = []
    model = ms.serve(lambda x: predicted.append(x) or x)
    assert ms.measure_relation(model, rows, r.finite_outputs(), candidates=0).n == len(rows)
    assert {row.tobytes() for block in predicted for row in block} == {row.tobytes() for row in rows}


def test_rows_of_text_and_of_any_number_are_saved_and_read_as_they_were(tmp_path):
    import ml_dtypes

    from pytest_modelserve.robustness.counterexample_report import save_inputs

    inputs = {
        "a/b": np.array([["x", "längst"]], object),
        "n": np.array([[1.5, -0.0]], ml_dtypes.bfloat16),
        "f": np.array([[np.nan, np.inf]], np.float32),
    }
    back = ms.strategies.saved(save_inputs(inputs, tmp_path, about=("m",)))
    assert list(back) == list(inputs)
    for name, array in inputs.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes() or back[name].tolist() == array.tolist()


def test_a_file_that_is_none_of_ours_is_an_artifact_error(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("no")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(ms.ArtifactError, match=f"{name} is no saved counterexample"):
            ms.strategies.saved(tmp_path / name)


def test_a_folder_that_cannot_be_written_does_not_hide_the_failure(quiet_rows, tmp_path):
    (tmp_path / "taken").write_text("")
    evidence = ms.measure_relation(ms.serve(planted), quiet_rows, r.finite_outputs(), save_to=tmp_path / "taken")
    assert evidence.verdict is ms.Verdict.FAIL
    assert any(finding.startswith("save_to: the rows could not be saved: ") for finding in evidence.findings)


def test_the_same_seed_finds_the_same_row(rows):
    model = ms.serve(lambda x: np.where((x[:, 1] > 1) & (x[:, 5] < -1), np.inf, x.sum(axis=1)))
    first, again = (ms.measure_relation(model, rows, r.finite_outputs(), save_to=None) for _ in range(2))
    assert first.findings == again.findings
    assert "seed 5" in ms.measure_relation(model, rows, r.finite_outputs(), seed=5, save_to=None).method.name


def test_the_search_continues_from_rows_with_the_highest_excess(rows):
    """A fault in 8 features of 60 at once is found through `excess`, and not without it."""
    base = np.random.default_rng(0).uniform(0, 1, (20, 60)).astype(np.float32)
    base = (base - base.min(axis=0)) / np.ptp(base, axis=0)

    def check(predictor, candidates, base):
        return r.Violations.beyond(predictor.predict(candidates)["output"].astype(np.float64))

    model = ms.serve(lambda x: np.abs(x[:, 3:59:7] - [0, 1] * 4).mean(axis=1) / 0.9)
    blind = r.relation("eight", lambda predictor, rows, base: check(predictor, rows, base).violated)
    options = {"candidates": 20_000, "domain": "like", "save_to": None}
    evidence = ms.measure_relation(model, base, r.relation("eight", check), **options)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.details["features_left"] <= 8
    assert ms.measure_relation(model, base, blind, **options).verdict is ms.Verdict.PASS


def test_rows_that_the_model_rejects_are_skipped_and_counted(rows):
    def model(x):
        if (x[:, 0] > 1).any():
            raise ms.InputError("feature 0 is at most 1")
        return x[:, 0]

    evidence = ms.measure_relation(ms.serve(model), np.minimum(rows, 1), r.finite_outputs(), candidates=400)
    assert evidence.verdict is ms.Verdict.PASS
    assert 0 < evidence.details["rejected"] < 100
    assert evidence.n == 400 - evidence.details["rejected"]
    assert evidence.findings[1].endswith("more rows; first error: feature 0 is at most 1")


def test_a_given_row_that_the_model_rejects_is_an_input_error(classifier):
    with pytest.raises(ms.InputError, match=r"input 'x' has shape .* axis 1 is 9 instead of 10"):
        ms.measure_relation(classifier, np.zeros((3, 9), np.float32), r.simplex())


def test_a_violation_that_is_not_reproduced_is_said_to_be_none_of_the_row(rows):
    rng = np.random.default_rng(0)
    model = ms.serve(lambda x: np.where(rng.random(len(x)) < 0.02, np.inf, 1.0))
    evidence = ms.measure_relation(model, rows, r.finite_outputs(), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1].startswith("not reproduced by the row alone: the outputs depend on more than the row")


def test_a_counterexample_of_a_model_that_depends_on_the_batch_violates_it_alone(rows):
    """Among other trials a row depends on them: only one that violates the relation by itself can be rerun."""
    model = ms.serve(lambda x: np.where((x[:, 2] > 1) & (x[:, 7] < -1) & (x[:, 0] >= x[:, 0].mean()), np.inf, 1.0))
    evidence = ms.measure_relation(model, rows, r.finite_outputs(), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1] == "1 of 1 values of output 'output' are not finite, the first is inf"
    assert evidence.details["features_left"] <= 2


def test_a_model_with_a_fixed_batch_is_called_with_that_batch(onnx_model):
    nodes = [helper.make_node("Softmax", ["x"], ["p"])]
    for batch in (1, 3):
        model = ms.serve(onnx_model(nodes, {"x": ("float32", [batch, 4])}, {"p": ("float32", [batch, 4])}))
        base = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        assert ms.measure_relation(model, base, r.simplex(), candidates=50).n == 50
    with pytest.raises(ms.UsageError, match="batch invariance needs batches of several rows"):
        ms.measure_relation(
            ms.serve(onnx_model(nodes, {"x": ("float32", [1, 4])}, {"p": ("float32", [1, 4])})),
            base,
            r.batch_invariance(),
        )


def test_inputs_without_rows_are_predicted_one_call_at_a_time(onnx_model):
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    shapes = {"x": ("float32", ["n"]), "scale": ("float32", [])}
    model = ms.serve(onnx_model(nodes, shapes, {"y": ("float32", ["n"])}))
    inputs = {"x": np.ones(3, np.float32), "scale": np.array(2, np.float32)}
    assert ms.measure_relation(model, inputs, r.finite_outputs(), candidates=50).n == 50
    broken = ms.measure_relation(
        model,
        inputs,
        r.relation("small", lambda p, c, b: p.predict(c)["y"].max(axis=1) > 3),
        candidates=200,
        save_to=None,
    )
    assert broken.verdict is ms.Verdict.FAIL
    assert "'scale': np.array(" in broken.findings[-1]


def test_an_output_without_a_row_for_each_row_is_an_input_error(rows):
    with pytest.raises(ms.InputError, match=r"output 'output' has shape \[10\] for 1 input rows"):
        ms.measure_relation(ms.serve(lambda x: x.sum(axis=0)), rows, r.finite_outputs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": -1}, "candidates must be a whole number of at least 0, got -1"),
        ({"feature_names": ["a"]}, "feature_names must name the 10 features of a row, got 1"),
        ({"domain": "nearby"}, "unknown domain 'nearby'"),
        ({"relation": r.batch_invariance(), "max_batch": 1}, "max_batch must be at least 2 for batch invariance"),
        ({"relation": r.relation("x", print, unit="set")}, "unit of the relation 'x' must be 'row' or 'batch'"),
        ({"inputs": np.zeros((0, 10), np.float32)}, "inputs are empty"),
        ({"inputs": "rows"}, "input 'input'"),
    ],
)
def test_invalid_arguments_are_refused(options, message, rows):
    arguments = {"inputs": rows, "relation": r.finite_outputs(), **options}
    inputs, relation = arguments.pop("inputs"), arguments.pop("relation")
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(ms.serve(lambda x: x), inputs, relation, **arguments)
    assert message in str(error.value)


def test_outputs_with_other_items_for_other_rows_are_an_input_error():
    """A sequence is one output an item, and its length may differ from row to row."""
    model = BatchedPredictor(
        ms.serve(lambda x: {"y[0]": x, "y[1]": x} if x > 1 else {"y[0]": x}), batch_size=0, pass_array=True
    )
    with pytest.raises(ms.InputError, match=r"outputs have different items for different rows: y\[1\]"):
        model.predict({"input": np.array([0.0, 2.0])})
