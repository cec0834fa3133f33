"""The gate on membership inference."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, UsageError

RNG = np.random.default_rng(5)
ROWS = RNG.normal(size=(1_600, 3))
LABELS = (ROWS[:, 0] + RNG.normal(size=1_600) > 0).astype(np.int64)
MEMBERS, OTHERS = (ROWS[:500], LABELS[:500]), (ROWS[500:], LABELS[500:])


def model(remembered=0.0, noise=1.0, seed=0):
    """Log odds of class 1 by the first column, with noise, and of some members as if their labels were learned."""
    generator = np.random.default_rng(seed)
    own_noise = {row.tobytes(): noise * generator.normal() for row in ROWS}
    known = {row.tobytes(): label for row, label in zip(*MEMBERS, strict=True) if generator.random() < remembered}

    def predict(rows):
        logits = rows[:, 0] + [own_noise.get(row.tobytes(), 0.0) for row in rows]
        learned = [12.0 * (2 * known[row.tobytes()] - 1) if row.tobytes() in known else 0.0 for row in rows]
        return np.stack([np.zeros(len(rows)), logits + learned], axis=1)

    return predict


def measure(served, members=MEMBERS, others=OTHERS, max_tpr=0.1, **given):
    return ms.measure_membership_leak(served, members, others, max_tpr=max_tpr, **given)


def test_remembered_rows_are_found_and_named_by_number():
    evidence = measure(model(0.4), reference_models=[model(seed=1), model(seed=2)])
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].name == "TPR at 1 % FPR"
    assert evidence.value == pytest.approx(0.48, abs=0.02)  # 47 % of the members are remembered
    assert evidence.interval.low == pytest.approx(0.41, abs=0.02)
    assert 0.6 < evidence.quantities[1].value < 0.8
    assert "reference models (2 reference models)" in evidence.findings[0]
    at_risk = evidence.details["members_at_risk"]
    assert len(at_risk) == 50
    assert f"members most at risk, by number: {at_risk[0]}" in evidence.findings[-1]
    known = model(0.4)(MEMBERS[0])[:, 1]
    assert (np.abs(known[at_risk]) > 6).all()


def test_a_model_that_remembers_nothing_passes_for_these_attacks():
    evidence = measure(model(), reference_models=model(seed=1))
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.summary.endswith("others may find more")
    assert evidence.details["attack_roc"]["at_fpr"] == 0.01


def test_the_upper_bound_is_that_of_the_strongest_attack():
    evidence = measure(model(0.06, noise=0.1), reference_models=model(seed=1, noise=4.0), max_tpr=0.05)
    threshold, reference = evidence.details["attacks"]
    assert threshold["tpr"] > reference["tpr"]
    assert evidence.interval.high > 0.08
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE


def test_reference_models_that_know_nothing_cannot_pass():
    def other_classes(rows):
        return -model(seed=1)(rows)

    evidence = measure(model(), reference_models=other_classes, max_tpr=0.5)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert "rank correlation -0." in evidence.findings[0] + evidence.findings[1]
    assert "classes in the same order" in evidence.advice


def test_equal_scores_are_named_where_no_number_of_rows_decides():
    def labels_only(rows):
        return np.clip(np.round(model()(rows)), -1, 1)

    evidence = measure(labels_only, reference_models=lambda rows: 1e-9 * labels_only(rows))
    assert "answers are rounded or saturated" in evidence.advice


def test_the_threshold_attack_alone_fails_or_decides_nothing():
    evidence = measure(model())
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.interval.high == 1.0
    assert "reference_models=" in evidence.advice
    assert measure(model(0.6)).verdict is ms.Verdict.FAIL


def test_two_attacks_are_paid_for():
    evidence = measure(model(), reference_models=model(seed=1))
    assert evidence.interval.low_level == pytest.approx(1 - 0.01 / 2)
    assert "Bonferroni" in evidence.method.name
    assert [attack["attack"] for attack in evidence.details["attacks"]] == ["threshold", "reference models"]


def test_exchanged_members_never_fail():
    rng = np.random.default_rng(9)
    trained, reference = model(0.4)(ROWS), model(seed=1)(ROWS)
    place = {row.tobytes(): number for number, row in enumerate(ROWS)}

    def recorded(outputs):
        return lambda rows: outputs[[place[row.tobytes()] for row in rows]]

    for _ in range(4):
        order = rng.permutation(1_600)
        some, rest = order[:500], order[500:]
        evidence = measure(
            recorded(trained),
            (ROWS[some], LABELS[some]),
            (ROWS[rest], LABELS[rest]),
            max_tpr=0.01,
            reference_models=recorded(reference),
        )
        assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert "give max_tpr above at_fpr=0.01" in evidence.advice


def test_an_undecided_gate_says_how_many_rows_would_decide():
    evidence = measure(model(), max_tpr=0.02, reference_models=model(seed=1))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert "times the rows" in evidence.advice


def test_too_few_non_members_are_counted_before_any_attack():
    def broken(rows):
        raise AssertionError

    evidence = measure(broken, others=(ROWS[500:1_100], LABELS[500:1_100]))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.advice == "give 400 more non-members, 1,000 in all, or a larger at_fpr"
    with pytest.raises(ms.GateInconclusive, match="too few non-members"):
        ms.assert_no_membership_leak(broken, MEMBERS, (ROWS[500:900], LABELS[500:900]), max_tpr=0.1)


def with_copies(rows, labels):
    return np.concatenate([rows, MEMBERS[0][[7, 3]]]), np.concatenate([labels, MEMBERS[1][[7, 3]]])


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (with_copies(*OTHERS), "non_members holds 2 of 1102 rows that are members, too (1100 equals member 7, 1101"),
        ((OTHERS[0] + 0.5, OTHERS[1]), "members and non_members come from different distributions"),
        ((OTHERS[0], 1 - OTHERS[1]), "a classifier that never sees the model tells them apart"),
        ((OTHERS[0][:, :2], OTHERS[1]), "must have rows of one shape; 'inputs' has (3,) and (2,)"),
        ((OTHERS[0], OTHERS[1][1:]), "non_members have 1100 rows and 1099 labels"),
        ((OTHERS[0][:0], OTHERS[1][:0]), "non_members: inputs are empty"),
    ],
)
def test_rows_that_do_not_suit_are_refused(others, message):
    with pytest.raises(InputError) as error:
        measure(model(), others=others)
    assert message in str(error.value)


def test_labels_only_are_refused_with_the_gap_of_accuracy():
    with pytest.raises(InputError, match="holds labels only") as error:
        measure(lambda rows: (rows[:, 0] > 0).astype(np.int64))
    assert "% of members and" in str(error.value)


def test_copies_are_found_in_another_float_type():
    rows, labels = with_copies(*OTHERS)
    with pytest.raises(InputError, match="1100 equals member 7"):
        measure(model(), others=(rows.astype(np.float32), labels))


def test_infinite_logits_are_refused():
    with pytest.raises(InputError, match=r"labels of \d+ of 1600 rows have no finite odds, first row 0"):
        measure(lambda rows: np.full((len(rows), 2), -np.inf))


def test_classes_of_a_classifier_are_its_labels():
    def named(rows):  # as converters of scikit-learn name the outputs
        logits = model(0.4)(rows)
        return {"label": np.array(["no", "yes"])[logits.argmax(axis=1)], "probabilities": logits}

    pairs = [(rows, np.array(["no", "yes"])[labels]) for rows, labels in (MEMBERS, OTHERS)]
    given = {"reference_models": model(seed=1)}
    expected = measure(model(0.4), **given)
    assert measure(named, *pairs, **given).details["attacks"] == expected.details["attacks"]


def test_nan_outputs_are_refused():
    with pytest.raises(InputError, match="NaN in 1 of 500 rows, first in row 0"):
        measure(lambda rows: np.where(rows == MEMBERS[0][0], np.nan, rows)[:, :2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tpr": 0.005}, "max_tpr must be at least at_fpr (0.01)"),
        ({"at_fpr": 0.7}, "at_fpr must be above 0 and below 0.5"),
        ({"members": None}, "members is missing"),
        ({"members": ROWS[:500]}, "label_column is missing: name the column of members"),
        ({"label_column": "y"}, "label_column is for members with a column of labels"),
        ({"deploy": print}, "deploy is for a ModelSource"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"members": "train.json", "label_column": "y"}, "members: unknown kind of file '.json'"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(UsageError) as error:
        measure(model(), **given)
    assert message in str(error.value)


def test_rows_come_from_files_with_a_column_of_labels(tmp_path):
    for name, (rows, labels) in {"seen": MEMBERS, "other": OTHERS}.items():
        np.savez(tmp_path / f"{name}.npz", x=rows, label=labels)
    evidence = measure(model(0.4), tmp_path / "seen.npz", str(tmp_path / "other.npz"), label_column="label")
    assert evidence.details["attacks"] == measure(model(0.4)).details["attacks"]


def test_columns_are_taken_by_name_in_any_order():
    def frame(rows, labels, names="abc"):
        return {**{name: rows[:, "abc".index(name)] for name in names}, "label": labels}

    def side_by_side(columns):
        return model(0.4)(np.stack(list(columns.values()), axis=1))

    ordered, shuffled = (
        measure(side_by_side, frame(*MEMBERS), frame(*OTHERS, names), label_column="label") for names in ("abc", "cba")
    )
    assert shuffled.details == ordered.details
