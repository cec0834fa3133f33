"""Copies of a model: from its answers, and from the true labels of the same rows."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.privacy import measure_extraction

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(700, 6)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(np.int64)
WEIGHTS = np.array([1.0, 2.0, 0, 0, 0, -1.0])


def own_opinion(rows):
    """A model that differs from the labels: probabilities (n, 2) of another rule."""
    score = rows @ WEIGHTS
    return np.stack([1 / (1 + np.exp(score)), 1 / (1 + np.exp(-score))], axis=1)


def measure(model=own_opinion, rows=ROWS, labels=LABELS, queries=(200,), max_gain=0.1, **given):
    with ms.serve(model) as served:
        return measure_extraction(served, rows, labels, queries=queries, max_gain=max_gain, **given)


def test_answers_of_a_model_with_its_own_opinion_teach_a_copy_what_labels_do_not():
    evidence = measure()
    assert evidence.verdict is ms.Verdict.FAIL
    gain, from_labels, from_answers = (quantity.value for quantity in evidence.quantities)
    assert gain == pytest.approx(from_answers - from_labels)
    assert from_answers > 0.97
    truth = own_opinion(ROWS).argmax(axis=1) == LABELS
    assert from_labels == pytest.approx(truth.mean(), abs=0.04)
    assert evidence.n == 500
    assert evidence.details["learned_from"] == "probabilities"
    assert evidence.findings[-1] == "the copy learned from the model's probabilities"


def test_a_model_that_is_always_right_gives_nothing_away_beyond_the_labels():
    evidence = measure(lambda rows: (rows[:, 0] > 0).astype(np.int64))
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.value == 0
    assert evidence.details["learned_from"] == "labels"


def test_few_held_out_rows_are_inconclusive_and_the_number_that_decides_is_said():
    evidence = measure(queries=[640], max_gain=0.25)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert "held-out rows, with which the verdict is reached 9 times in 10" in evidence.advice


def test_equal_rows_are_sent_once_held_out_from_them_and_count_as_one():
    some = ROWS[:120]
    once = measure(rows=some, labels=LABELS[:120], queries=[80])
    often = measure(rows=np.tile(some, (6, 1)), labels=np.tile(LABELS[:120], 6), queries=[80])
    assert (once.n, often.n, often.n_unit) == (40, 40, "groups")
    assert "240 held-out rows are 40 groups" in often.findings[-1]
    assert often.interval.low < often.value < often.interval.high
    with pytest.raises(UsageError, match="fewer than the 120 distinct rows of inputs"):
        measure(rows=np.tile(some, (6, 1)), labels=np.tile(LABELS[:120], 6), queries=[120])


def test_rows_of_a_group_are_queried_or_held_out_together():
    patients = np.arange(700) // 7
    evidence = measure(sampling=ms.Sampling(groups=patients))
    assert (evidence.n, evidence.n_unit) == (100 - 29, "groups")
    with pytest.raises(UsageError, match="sampling takes groups only here"):
        measure(sampling=ms.Sampling(block=7))


def test_the_curve_has_the_numbers_of_queries_and_the_largest_is_judged():
    evidence = measure(queries=[200, 20, 50])
    curve = evidence.details["extraction"]
    assert curve["queries"] == [20, 50, 200]
    assert curve["answers"][-1] == pytest.approx(evidence.quantities[2].value, abs=1e-4)
    assert measure(queries=100).details["extraction"]["queries"] == [12, 25, 50, 100]


def test_the_same_seed_gives_the_same_verdict_and_another_one_other_queries():
    first, again, other = (measure(queries=[40], seed=seed).details["extraction"] for seed in (1, 1, 2))
    assert first == again != other


def test_logits_rounded_and_cut_probabilities_and_labels_as_text_are_read():
    logits = measure(lambda rows: rows @ np.stack([-WEIGHTS, WEIGHTS], axis=1))
    assert logits.quantities[2].value > 0.97
    cut = measure(lambda rows: np.where((p := np.round(own_opinion(rows), 1)) >= 0.5, p, 0))
    assert cut.quantities[2].value > 0.93
    names = np.array(["no", "yes"])
    text = measure(lambda rows: names[own_opinion(rows).argmax(axis=1)], labels=names[LABELS])
    assert text.quantities[2].value > 0.93
    single = measure(lambda rows: own_opinion(rows)[:, 1:], output=ms.Output(decode="threshold"), labels=LABELS)
    assert single.quantities[2].value > 0.97


def test_the_copy_may_be_a_function_of_the_user():
    seen = []

    def nearest(rows, targets, seed):
        seen.append((rows.shape, targets.shape, seed))
        return lambda others: targets[((others[:, None] - rows) ** 2).sum(axis=2).argmin(axis=1)]

    evidence = measure(copy=nearest, queries=[100], seed=5)
    assert seen == [((100, 6), (100, 2), 5)] * 2
    assert evidence.quantities[2].value > 0.8
    with pytest.raises(UsageError, match="copy must return scores of shape"):
        measure(copy=lambda *_: lambda others: others[:, 0])


def test_the_copy_may_be_a_source_whose_data_are_replaced(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("MODELSERVE_CACHE", str(tmp_path))
    spec = ms.TrainSpec(loss="cross_entropy", epochs=20, learning_rate=0.1, inputs="x", labels="y")
    source = ms.ModelSource(
        name="attacker",
        build=lambda: torch.nn.Linear(6, 2),
        fit=spec,
        data={"x": ROWS[:4], "y": LABELS[:4]},
        example_inputs=ROWS[:2],
    )
    evidence = measure(copy=source, queries=[100])
    assert evidence.quantities[2].value > 0.9
    with pytest.raises(UsageError, match=r"copy needs a source whose fit is ms.TrainSpec\(...\)"):
        measure(copy=ms.ModelSource(name="a", build=source.build, fit=print, data=source.data, example_inputs=ROWS))


@pytest.mark.parametrize("names", [("benign", "malignant"), (3, 7)])
def test_a_classifier_of_scikit_learn_calls_its_classes_by_their_labels(names):
    linear = pytest.importorskip("sklearn.linear_model")
    labels = np.array(names)[LABELS]
    model = linear.LogisticRegression().fit(ROWS[:, :3] + ROWS[:, 3:], labels)

    def answers(rows):
        given = rows[:, :3] + rows[:, 3:]
        return {"label": model.predict(given), "probabilities": model.predict_proba(given)}

    evidence = measure(answers, labels=labels)
    agreement = (model.predict(ROWS[:, :3] + ROWS[:, 3:]) == labels).mean()
    assert evidence.quantities[1].value == pytest.approx(agreement, abs=0.06)
    assert evidence.details["learned_from"] == "probabilities"
    unknown = measure(answers, labels=np.where(ROWS[:, 1] > 1, "other" if names[0] == "benign" else 9, labels))
    assert unknown.quantities[1].value < evidence.quantities[1].value  # no answer agrees with a class without a column
    with pytest.raises(InputError, match=r"and the model's are .* …: give labels of the same kind"):
        measure(answers, labels=LABELS if names[0] == "benign" else np.array(["no", "yes"])[LABELS])


def test_frames_and_mappings_have_text_and_missing_numbers():
    color = np.array(["red", "blue"], dtype=object)[(ROWS[:, 1] > 0).astype(int)]
    rows = {"x": np.where(ROWS[:, :1] > 1.5, np.nan, ROWS[:, :1]), "color": color}
    evidence = measure(lambda feed: (feed["color"] == "red").astype(int), rows)
    assert evidence.quantities[2].value == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queries": 700}, "queries must be at least 8 and fewer than the 700 rows of inputs"),
        ({"queries": 3}, "as the other rows are held out; got 3"),
        ({"queries": "many"}, "queries must be a number of queries, or several of them, got 'many'"),
        ({"max_gain": 0}, "max_gain must be between 0 and 1"),
        ({"queries": 100.0}, "queries must be a number of queries, or several of them, got 100.0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"copy": 3}, "copy must be ms.ModelSource"),
        ({"copy": lambda *given: None}, "copy must return a function from rows to scores; got NoneType"),
        ({"copy": lambda *given: lambda rows: np.ones((3, 2))}, r"of shape \(500 rows, classes\); got \(3, 2\)"),
        ({"copy": lambda *given: lambda rows: np.full((len(rows), 2), np.nan)}, "copy returns NaN in 500 of 500 rows"),
        ({"model": lambda rows: rows[:, 0]}, "has one number a row"),
    ],
)
def test_invalid_arguments_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        measure(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": LABELS[:10]}, "there are 10 labels for 700 rows of inputs"),
        ({"labels": LABELS + 1}, "label 2 in row 0 has no column"),
        ({"labels": np.array(["a", "b"])[LABELS]}, "labels of the same kind"),
        ({"model": lambda rows: np.full((len(rows), 2), np.nan)}, "holds NaN in 700 rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        measure(**given)
