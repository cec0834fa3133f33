"""Slices: by columns, bins and predicates, informing and judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

import pytest_modelserve as ms
from pytest_modelserve import stats

N = 2000
ROWS = np.arange(N, dtype=np.float32)[:, None]
LABELS = np.arange(N) % 2
SITE = np.where(np.arange(N) < 400, "north", "south")


def test_bins_name_their_edges() -> None:
    found = ms.bins([17, 18, 39.5, 40, 65, np.nan], [18, 40, 65])
    assert found.tolist() == ["< 18", "[18, 40)", "[18, 40)", "[40, 65)", ">= 65", "NaN"]
    assert ms.bins(np.array([1, 2]), [2]).tolist() == ["< 2", ">= 2"]


@pytest.mark.parametrize(
    ("values", "edges", "message"),
    [
        ([[1.0]], [1], "values to bin are numbers, one a row; got shape (1, 1) of float64"),
        (["a"], [1], "values to bin are numbers, one a row; got shape (1,) of <U1"),
        ([1.0], [2, 1], "edges of bins are strictly rising numbers; got [2, 1]"),
        ([1.0], [], "edges of bins are strictly rising numbers; got []"),
    ],
)
def test_bins_that_cannot_be_are_refused(values: Any, edges: Any, message: str) -> None:
    with pytest.raises(ms.InputError) as caught:
        ms.bins(values, edges)
    assert str(caught.value) == message


def worst(voting: Any, slices: Any, wrong: Any = range(20)) -> tuple[str, ...]:
    found: tuple[str, ...] = ms.measure_accuracy(
        voting(LABELS, wrong), ROWS, LABELS, min_value=0.9, slices=slices
    ).findings
    return found


def test_predicate_over_the_inputs_names_the_rows_where_it_holds(voting: Any) -> None:
    told = worst(voting, {"early": lambda inputs: inputs[:, 0] < 100, "late": lambda inputs: inputs[:, 0] >= 100})
    assert told == ("worst slice early: 80.0 % of 100 rows",)


def test_predicate_may_return_a_column(voting: Any) -> None:
    told = worst(voting, {"age": lambda inputs: ms.bins(inputs[:, 0], [100])})
    assert told == ("worst slice age=< 100: 80.0 % of 100 rows",)


def test_missing_values_are_a_slice_of_their_own(voting: Any) -> None:
    column = np.where(np.arange(N) < 50, np.nan, 1.0)
    assert worst(voting, {"x": column}) == ("worst slice x=nan: 60.0 % of 50 rows",)


def test_columns_of_objects_are_told_by_their_text(voting: Any) -> None:
    column = np.array([None] * 50 + ["a"] * (N - 50), dtype=object)
    assert worst(voting, {"x": column}) == ("worst slice x=None: 60.0 % of 50 rows",)


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (
            {"x": np.arange(N)},
            "slice 'x' has 2000 different values: put them into bins, 'x': ms.bins(values, edges)",
        ),
        ({"x": lambda inputs: inputs[:, 0] < 0}, "slice 'x' holds for none of the 2000 rows"),
        ({"x": lambda inputs: inputs}, "slice 'x' has shape (2000, 1); it needs one value for each of the 2000 rows"),
    ],
)
def test_slices_that_cannot_be_are_refused(voting: Any, slices: Any, message: str) -> None:
    with pytest.raises(ms.InputError) as caught:
        worst(voting, slices)
    assert str(caught.value) == message


def test_slice_without_a_value_is_not_told(answering: Any) -> None:
    """One class only in the north: no area there."""
    labels = np.where(SITE == "north", 1, LABELS)
    score = LABELS + np.linspace(0, 2, N)
    evidence = ms.measure_accuracy(
        answering(score), ROWS, labels, metric="roc_auc", min_value=0.1, slices={"site": SITE}
    )
    assert evidence.findings[0].startswith("worst slice site=south")


def judged(voting: Any, lost: Any, whole: float = 0.02, **rules: Any) -> ms.Evidence:
    slices = ms.Slices(**({"columns": {"site": SITE}, "max_drop": 0.05, "min_rows": 100} | rules))
    return ms.measure_accuracy_parity(voting(LABELS, lost), voting(LABELS), ROWS, LABELS, max_drop=whole, slices=slices)


def test_slices_pass_when_all_of_them_do(voting: Any) -> None:
    evidence = judged(voting, range(4))
    assert evidence.verdict is ms.Verdict.PASS
    assert [q.name for q in evidence.quantities if q.budget] == ["drop", "drop site=north", "drop site=south"]
    assert evidence.quantities[3].value == 4 / 400
    assert evidence.alpha == 0.001


def test_slice_that_fails_fails_the_gate(voting: Any) -> None:
    evidence = judged(voting, range(60), whole=0.05)
    assert evidence.quantities[0].verdict is ms.Verdict.PASS
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.summary == "a slice is outside its budget: drop site=north"
    assert evidence.advice == "look at the rows of this slice first"


def test_slice_that_cannot_be_told_makes_the_gate_inconclusive(voting: Any) -> None:
    evidence = judged(voting, range(16))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.summary == "not enough rows to decide on a slice: drop site=north"


def test_failure_text_names_every_judged_slice(voting: Any) -> None:
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy(
            voting(LABELS, range(200), "model"),
            ROWS,
            LABELS,
            min_value=0.85,
            slices=ms.Slices({"site": SITE}, min_value=0.8, min_rows=100),
        )
    assert (
        str(failure.value)
        == """\
accuracy: a slice is outside its budget: accuracy site=north

  accuracy   90.00 %
  interval   [88.83, 92.08]  low at 95 %, high at 99.95 %, exact binomial bounds, n = 2000 rows
  budget     at least 85.00 %
  verdict    PASS: the whole interval lies inside the budget

  accuracy site=north 50.00 %
  interval   [45.77, 58.56]  low at 95 %, high at 99.9667 %, exact binomial bounds, n = 2000 rows
  budget     at least 80.00 %
  verdict    FAIL: the whole interval lies below the budget

  accuracy site=south 100.00 %
  interval   [99.81, 100.00]  low at 95 %, high at 99.95 %, exact binomial bounds, n = 2000 rows
  budget     at least 80.00 %
  verdict    PASS: the whole interval lies inside the budget

  worst slice site=north: 50.0 % of 400 rows
  candidate  model
  next       look at the rows of this slice first"""
    )


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        ("balanced_accuracy", {"max_drop": 0.2, "slice_budget": {"max_drop": 0.2}}),
        ("recall", {"max_drop": 0.2, "slice_budget": {"max_drop": 0.2}}),
        ("f1", {"max_drop": 0.2, "slice_budget": {"max_drop": 0.2}}),
        ("log_loss", {"max_rise": 1.0, "slice_budget": {"max_rise": 1.0}, "output": ms.Output(scores="logits")}),
        ("roc_auc", {"max_drop": 0.2, "slice_budget": {"max_drop": 0.2}}),
    ],
)
def test_slices_of_every_metric_are_judged(answering: Any, metric: str, arguments: Any) -> None:
    arguments = dict(arguments)
    budget = arguments.pop("slice_budget")
    rng = np.random.default_rng(0)
    logits = 2 * np.stack([-LABELS, LABELS], axis=1) + rng.standard_normal((N, 2))
    bad = logits.copy()
    bad[:160] = -bad[:160]
    for new, verdict in ((logits + 1e-3, ms.Verdict.PASS), (bad, ms.Verdict.FAIL)):
        evidence = ms.measure_accuracy_parity(
            answering(new),
            answering(logits),
            ROWS,
            LABELS,
            metric=metric,
            slices=ms.Slices(
                {"first": lambda inputs: inputs[:, 0] < 200, "rest": lambda inputs: inputs[:, 0] >= 200},
                min_rows=50,
                **budget,
            ),
            **arguments,
        )
        quantities = {q.name.split()[-1]: q.verdict for q in evidence.quantities if q.budget}
        assert quantities["first"] is verdict
        assert quantities["rest"] is ms.Verdict.PASS


def test_groups_and_weights_are_those_of_the_slice(answering: Any) -> None:
    evidence = ms.measure_accuracy(
        answering(np.where(np.arange(N) < 40, 1 - LABELS, LABELS)),
        ROWS,
        LABELS,
        output=ms.Output(decode="labels"),
        min_value=0.5,
        sampling=ms.Sampling(groups=np.arange(N) // 20, sample_weight=np.where(np.arange(N) < 20, 3.0, 1.0)),
        slices=ms.Slices({"site": SITE}, min_value=0.5, min_rows=10),
    )
    north = next(q for q in evidence.quantities if q.name == "accuracy site=north")
    assert north.value == pytest.approx(360 / 440)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_rows": None}, "Slices: max_drop= needs min_rows=: give both to judge slices, or neither to be informed"),
        ({"max_drop": None}, "Slices: min_rows= needs a budget: give both to judge slices, or neither to be informed"),
        ({"columns": {}}, "Slices: max_drop= is the budget of a slice, and there are no columns"),
        ({"columns": SITE}, "slices map names to columns, got ndarray"),
        ({"max_drop": float("nan")}, "Slices: max_drop must be above -1 and below 1, got nan"),
        ({"max_drop": 5}, "Slices: max_drop must be above -1 and below 1, got 5"),
        ({"min_rows": 0}, "Slices: min_rows is a count of at least 1, got 0"),
        ({"max_rise": 0.1}, "Slices: max_drop= and max_rise= exclude each other: give one"),
        (
            {"max_drop": None, "max_rise": 0.1},
            "Slices: max_rise= does not go with max_drop=: give Slices(..., max_drop=)",
        ),
        (
            {"min_rows": 401},
            "slice site=north has 400 rows, fewer than min_rows=401: label more of it, merge it with another, or leave "
            "it out",
        ),
    ],
)
def test_rules_of_slices_that_cannot_be_are_one_clear_error(voting: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        judged(voting, range(10), **arguments)
    assert str(caught.value) == message


def test_slice_that_is_too_small_is_told_the_rows_that_it_needs(voting: Any) -> None:
    with pytest.raises(ms.InputError) as caught:
        judged(voting, range(10), min_rows=500, max_drop=0.005)
    needed = stats.rows_needed(discordance=10.5 / 2001, margin=0.005, confidence=0.95)
    assert str(caught.value) == (
        f"slice site=north has 400 rows, fewer than min_rows=500; against max_drop=0.005 about {needed:,} rows of "
        "it are needed: label more of it, merge it with another, or leave it out"
    )


def test_recall_counts_the_positive_rows_of_a_slice(answering: Any) -> None:
    labels = np.where(SITE == "north", (np.arange(N) % 40 == 0).astype(int), LABELS)
    rules = {"metric": "recall", "output": ms.Output(decode="labels")}
    message = r"^slice site=north has 10 rows, fewer than min_rows=50: "
    with pytest.raises(ms.InputError, match=message):
        ms.measure_accuracy(
            answering(labels),
            ROWS,
            labels,
            min_value=0.5,
            slices=ms.Slices({"site": SITE}, min_value=0.5, min_rows=50),
            **rules,
        )
    model = answering(labels)
    with pytest.raises(ms.InputError, match=message):
        ms.measure_accuracy_parity(
            model,
            model,
            ROWS,
            labels,
            max_drop=0.5,
            slices=ms.Slices({"site": SITE}, max_drop=0.6, min_rows=50),
            **rules,
        )


def test_slice_over_which_the_metric_has_no_value_cannot_be_judged(answering: Any) -> None:
    labels = np.where(SITE == "north", 1, LABELS)
    with pytest.raises(ms.InputError) as caught:
        ms.measure_accuracy(
            answering(np.linspace(0, 1, N)),
            ROWS,
            labels,
            metric="roc_auc",
            min_value=0.5,
            slices=ms.Slices({"site": SITE}, min_value=0.5, min_rows=50),
        )
    assert str(caught.value) == (
        "slice site=north cannot be judged: an area under the ROC curve needs rows of both classes"
    )


def holm_by_hand(p_values: list[float], alpha: float) -> set[int]:
    """Which hypotheses Holm's procedure rejects, smallest p-value first."""
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - step):
            break
        rejected.add(index)
    return rejected


def test_fail_over_slices_takes_holms_correction(voting: Any) -> None:
    """A part fails alone where P(as few right rows | its budget) <= alpha: Holm's procedure over those p-values."""
    rng, failed = np.random.default_rng(0), 0
    for _ in range(40):
        wrong = np.flatnonzero(rng.random(N) < np.repeat(rng.uniform(0.05, 0.3, 5), 400))
        evidence = ms.measure_accuracy(
            voting(LABELS, wrong),
            ROWS,
            LABELS,
            min_value=0.85,
            alpha=0.01,
            slices=ms.Slices({"x": np.arange(N) // 400}, min_value=0.85, min_rows=50),
        )
        right = 400 - np.bincount(wrong // 400, minlength=5)
        p_values = [binom.cdf(right.sum(), N, 0.85), *binom.cdf(right, 400, 0.85)]
        found = {int(q.name[-1]) + 1 for q in evidence.quantities[1:] if q.verdict is ms.Verdict.FAIL}
        found |= {0} if evidence.quantities[0].verdict is ms.Verdict.FAIL else set()
        assert found == holm_by_hand(p_values, 0.01)
        failed += len(found)
    assert failed > 40


def test_many_slices_still_travel(voting: Any) -> None:
    evidence = judged(voting, range(60), columns={"x": np.arange(N) % 40}, min_rows=10, max_drop=0.5)
    assert len([q for q in evidence.quantities if q.budget]) == 31
    assert evidence.findings[-1] == "40 slices judged; the 10 best are not shown"
    assert len(evidence.to_json().encode()) <= 16 * 1024


def test_false_fails_stay_rare_over_many_slices(voting: Any) -> None:
    """20 slices, each exactly on its budget: one FAIL in alpha of samples at most, where uncorrected it is one in five."""
    rng, failed = np.random.default_rng(0), 0
    for _ in range(100):
        wrong = np.flatnonzero(rng.random(N) < 0.1)
        evidence = ms.measure_accuracy(
            voting(LABELS, wrong),
            ROWS,
            LABELS,
            min_value=0.5,
            alpha=0.01,
            slices=ms.Slices({"x": np.arange(N) % 20}, min_value=0.9, min_rows=50),
        )
        failed += evidence.verdict is ms.Verdict.FAIL
    assert failed <= 4
