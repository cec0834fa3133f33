"""The gate of robust accuracy: attacks on models whose robust accuracy is known, replay, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

import pytest_modelserve as ms

RNG = np.random.default_rng(0)
ROWS = RNG.uniform(0, 16, size=(300, 64)).astype(np.float32)
WEIGHTS = RNG.normal(size=(64, 4)).astype(np.float32)
LABELS = (ROWS @ WEIGHTS).argmax(axis=1)
RANGE = {"low": 0, "high": 16}
FEW = [ms.attacks.square(queries=100)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def linear(rows):
    return rows @ WEIGHTS


def exact_robust_accuracy(eps):
    """Return the proportion of rows that a linear model keeps under every change of each feature by eps in the range."""
    wide = ROWS.astype(np.float64)
    low, high = np.maximum(wide - eps, 0) - wide, np.minimum(wide + eps, 16) - wide
    scores = wide @ WEIGHTS.astype(np.float64)
    kept = np.ones(len(ROWS), bool)
    for other in range(4):
        change = WEIGHTS[:, [other]].T.astype(np.float64) - WEIGHTS[:, LABELS].T
        gained = np.maximum(change * low, change * high).sum(axis=1)
        lead = scores[np.arange(len(ROWS)), LABELS] - scores[:, other]
        kept &= (other == LABELS) | (lead > gained)
    return kept.mean()


@pytest.mark.parametrize("eps", [0.1, 0.3, 1.0])
def test_square_finds_the_robust_accuracy_of_a_linear_model(eps):
    attack = ms.attacks.square(queries=300)
    found = ms.measure_robust_accuracy(linear, ROWS, LABELS, eps=eps, min_accuracy=0.5, attacks=[attack], **RANGE)
    assert found.value == pytest.approx(exact_robust_accuracy(eps), abs=0.004)
    assert found.quantities[1].value == 1.0


def test_l2_attack_finds_what_the_distance_to_the_hyperplanes_says():
    attack = ms.attacks.square(queries=400)
    found = ms.measure_robust_accuracy(
        linear, ROWS[:60], LABELS[:60], eps=2, norm="l2", min_accuracy=0.5, attacks=[attack]
    )
    scores, far = ROWS[:60] @ WEIGHTS, np.inf
    for other in range(4):
        lead = scores[np.arange(60), LABELS[:60]] - scores[:, other]
        length = np.linalg.norm(WEIGHTS[:, LABELS[:60]] - WEIGHTS[:, [other]], axis=0)
        far = np.minimum(far, np.where(other == LABELS[:60], np.inf, lead / np.where(length > 0, length, 1)))
    assert found.value == pytest.approx((far > 2).mean(), abs=0.05)
    assert found.value >= (far > 2).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_changes_of_whole_numbers_in_an_l2_ball_are_found_by_queries(dtype, rng):
    """In a ball of radius 2 four features may change by 1: the worst change is that of the four largest weights."""
    weights = rng.uniform(1, 2, 16)
    rows = rng.integers(2, 9, size=(100, 16)).astype(dtype)
    middle = np.median(rows @ weights)

    def model(x):
        score = x.astype(np.float64) @ weights - middle
        return np.stack([-score, score], axis=1)

    integer = {} if dtype is np.uint8 else {"integer": range(16)}
    labels = model(rows).argmax(axis=1)
    attack = ms.attacks.square(queries=400)
    found = ms.measure_robust_accuracy(
        model, rows, labels, eps=2, norm="l2", min_accuracy=0.5, attacks=[attack], **integer
    )
    truth = (np.abs(model(rows)[:, 1]) > np.sort(weights)[-4:].sum()).mean()
    assert truth <= found.value <= truth + 0.02


def test_attack_by_labels_alone_is_chosen_for_a_model_without_scores():
    found = ms.measure_robust_accuracy(
        lambda rows: linear(rows).argmax(axis=1), ROWS[:20], LABELS[:20], eps=0.3, min_accuracy=0.5, **RANGE
    )
    assert "boundary" in found.details["attacks"]
    full = ms.measure_robust_accuracy(
        linear, ROWS[:20], LABELS[:20], eps=0.3, min_accuracy=0.5, attacks=[ms.attacks.square(queries=300)], **RANGE
    )
    assert found.value == pytest.approx(full.value, abs=0.05)


def test_verdict_is_on_the_largest_eps_and_the_curve_falls():
    found = ms.measure_robust_accuracy(linear, ROWS, LABELS, eps=[0.5, 0.05], min_accuracy=0.95, attacks=FEW, **RANGE)
    curve = found.details["accuracy_over_eps"]
    assert curve["eps"] == [0.05, 0.5]
    assert curve["series"][0]["value"][0] > curve["series"][0]["value"][1] == found.value
    assert found.verdict is ms.Verdict.FAIL
    assert "accuracy in % by eps, 0: 100.0, 0.05:" in " ".join(found.findings)


def test_pass_claims_no_more_than_that_these_attacks_found_nothing():
    found = ms.measure_robust_accuracy(linear, ROWS, LABELS, eps=0.001, min_accuracy=0.9, attacks=FEW, **RANGE)
    assert found.verdict is ms.Verdict.PASS
    assert found.summary == "these attacks found no more wrong rows than allowed; others may"
    assert "other attacks may find more" in found.method.assumptions


def test_too_few_rows_are_inconclusive_and_say_how_many_would_decide():
    found = ms.measure_robust_accuracy(linear, ROWS[:20], LABELS[:20], eps=0.01, min_accuracy=0.93, attacks=FEW)
    assert found.verdict is ms.Verdict.INCONCLUSIVE
    assert "rows" in found.advice
    assert found.details["rows_needed"] > 20


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_every_saved_row_is_inside_the_ball_and_the_range_in_the_served_dtype(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ROWS[:100].astype(dtype)
    labels = linear(rows.astype(np.float32)).argmax(axis=1)
    eps = 1.3 if dtype is np.uint8 else 0.3

    def model(x):
        assert x.dtype == dtype
        return x.astype(np.float32) @ WEIGHTS

    found = ms.measure_robust_accuracy(model, rows, labels, eps=eps, min_accuracy=0.5, attacks=FEW, **RANGE)
    saved = ms.attacks.saved(found.details["adversarial_rows"])
    (changed,), (base,) = saved.inputs.values(), saved.base.values()
    assert len(saved.rows) >= 20
    assert changed.dtype == dtype
    assert np.array_equal(base, rows[saved.rows])
    assert (np.abs(changed.astype(np.float64) - base.astype(np.float64)) <= eps).all()
    assert changed.min() >= 0
    assert changed.max() <= 16
    assert saved.fooled(model).all()


def test_rows_that_are_wrong_already_count_as_wrong_and_are_not_attacked():
    labels = LABELS.copy()
    labels[:30] = (labels[:30] + 1) % 4
    found = ms.measure_robust_accuracy(linear, ROWS, labels, eps=0.001, min_accuracy=0.5, attacks=FEW, **RANGE)
    assert found.value <= 0.9
    assert found.details["attacks"]["square"]["attacked"] == 270
    assert "30 rows are wrong without any change" in found.findings


def test_rows_of_one_class_are_attacked_and_a_constant_model_is_named_as_robust():
    """Frauds that evade a detector: only rows of this class matter."""
    one = LABELS == 2
    found = ms.measure_robust_accuracy(linear, ROWS[one], LABELS[one], eps=0.3, min_accuracy=0.5, attacks=FEW, **RANGE)
    assert 0 < found.value < 1
    assert "all labels are 2: a model that always returns it would be robust" in found.findings


def test_advice_is_on_clean_accuracy_where_that_is_too_low_already():
    labels = np.where(np.arange(300) % 2, LABELS, (LABELS + 1) % 4)
    found = ms.measure_robust_accuracy(linear, ROWS, labels, eps=0.1, min_accuracy=0.8, attacks=FEW, **RANGE)
    assert found.verdict is ms.Verdict.FAIL
    assert found.advice.startswith("clean accuracy is below min_accuracy already")


def test_all_rows_wrong_is_a_failure_that_says_so_without_any_attack():
    found = ms.measure_robust_accuracy(linear, ROWS, (LABELS + 1) % 4, eps=0.1, min_accuracy=0.5, **RANGE)
    assert found.verdict is ms.Verdict.FAIL
    assert found.summary == "every row is predicted wrong without any change, so nothing was attacked"
    assert found.quantities[2].value == 0


def test_rows_with_nan_scores_are_wrong_and_counted_in_the_findings():
    def model(rows):
        scores = linear(rows)
        scores[np.isclose(rows[:, 0], ROWS[0, 0])] = np.nan
        return scores

    found = ms.measure_robust_accuracy(model, ROWS, LABELS, eps=0.001, min_accuracy=0.5, attacks=FEW, **RANGE)
    assert "1 rows are wrong without any change, 1 of them with NaN scores" in found.findings


def test_nan_scores_that_an_attack_provokes_count_as_wrong():
    def model(rows):
        scores = linear(rows)
        scores[rows[:, 0] > ROWS[0, 0] + 0.005] = np.nan
        return scores

    rows = np.repeat(ROWS[:1], 20, axis=0)
    rows[1:, 0] -= 1
    labels = np.append(LABELS[0], linear(rows[1:]).argmax(axis=1))
    labels[-1] = (labels[-1] + 1) % 4
    found = ms.measure_robust_accuracy(model, rows, labels, eps=0.01, min_accuracy=0.1, attacks=FEW)
    assert f"row 0: {LABELS[0]} → NaN" in " ".join(found.findings)


def test_outputs_that_depend_on_the_batch_are_verified_again_and_not_counted():
    calls = []

    def model(rows):
        calls.append(len(rows))
        return linear(rows) if len(calls) != 2 else -linear(rows)

    found = ms.measure_robust_accuracy(model, ROWS[:50], LABELS[:50], eps=1e-4, min_accuracy=0.5, attacks=FEW)
    assert found.value == 1.0
    assert "rows were wrong once and right in another batch" in " ".join(found.findings)


def test_immutable_integer_and_dependent_features_and_categories_are_kept():
    rng = np.random.default_rng(1)
    table = np.stack(
        [rng.normal(size=200), rng.integers(0, 9, 200), rng.integers(0, 3, 200), rng.normal(size=200)], axis=1
    )
    table = np.column_stack([table, table[:, 0] * 2])

    def model(rows):
        assert np.allclose(rows[:, 4], rows[:, 0] * 2)
        assert np.isin(rows[:, 2], [0, 1, 2]).all()
        assert (rows[:, 1] == np.rint(rows[:, 1])).all()
        assert np.isin(rows[:, 3], table[:, 3]).all()
        score = rows[:, 0] + 0.3 * rows[:, 1] + 0.4 * (rows[:, 2] == 2) + rows[:, 3] + 0.1 * rows[:, 4]
        return np.stack([-score, score - 2], axis=1)

    labels = model(table).argmax(axis=1)
    found = ms.measure_robust_accuracy(
        model,
        table,
        labels,
        eps=0.5,
        scale=[1, 2, 1, 1, 1],
        min_accuracy=0.5,
        immutable=[3],
        integer=[1],
        categories={2: [0, 1, 2]},
        dependent={4: lambda rows: rows[:, 0] * 2},
        attacks=[ms.attacks.random_search(queries=100), ms.attacks.square(queries=30)],
    )
    lead = np.abs(np.diff(model(table), axis=1)[:, 0])
    most = 2 * (0.5 + 0.3 * 1 + 0.1 * 1) + 2 * 0.4
    assert 0.5 < found.value < 0.9
    assert found.value >= (lead > most + 1e-6).mean()


def test_another_input_that_depends_on_the_attacked_one_is_computed_again(rng):
    def model(feed):
        assert np.allclose(feed["sum"], feed["x"].sum(axis=1, keepdims=True), atol=1e-3)
        return np.concatenate([feed["sum"], 1 - feed["sum"]], axis=1)

    x = rng.uniform(0, 0.25, size=(100, 4)).astype(np.float32)
    inputs = {"x": x, "sum": x.sum(axis=1, keepdims=True)}
    labels = (x.sum(axis=1) <= 0.5).astype(int)
    total = {"sum": lambda feed: feed["x"].sum(axis=1, keepdims=True)}
    found = ms.measure_robust_accuracy(
        model, inputs, labels, eps=0.02, min_accuracy=0.5, input_name="x", dependent=total, attacks=FEW
    )
    assert found.value == pytest.approx((np.abs(x.sum(axis=1) - 0.5) > 0.08).mean(), abs=0.02)
    with pytest.raises(ms.InputError, match=r"dependent\['sum'\] returns other values than the inputs hold in row 0"):
        ms.measure_robust_accuracy(
            model, inputs, labels, eps=0.02, min_accuracy=0.5, input_name="x", dependent={"sum": lambda f: f["sum"] + 1}
        )


def test_numeric_columns_of_a_frame_are_attacked_together_in_their_dtypes(tmp_path, monkeypatch, rng):
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    frame = pandas.DataFrame(rng.normal(size=(100, 2)), columns=["a", "b"])
    frame["count"] = rng.integers(0, 5, 100)
    frame["color"] = "red"

    def model(columns):
        assert columns["count"].dtype.kind == "i"
        score = columns["a"] + columns["b"] + columns["count"] - 2
        return np.stack([-score, score], axis=1)

    score = (frame["a"] + frame["b"] + frame["count"] - 2).to_numpy()
    options = {"eps": 0.1, "min_accuracy": 0.5, "attacks": FEW}
    labels = (score > 0).astype(int)
    found = ms.measure_robust_accuracy(model, frame, labels, scale={"a": 1, "count": 10}, **options)
    assert found.value == (np.abs(score) > 1.1).mean()
    assert ms.attacks.saved(found.details["adversarial_rows"]).fooled(model).all()
    fixed = ms.measure_robust_accuracy(model, frame, labels, immutable=["count", "b"], **options)
    assert fixed.value == (np.abs(score) > 0.1).mean()
    settings = {**options, "allowed": lambda before, after: after["a"] < before["a"]}
    lower = ms.measure_robust_accuracy(model, frame, labels, scale={"a": 1}, **settings)
    assert lower.value == 1 - ((score > 0) & (score < 0.1)).mean()
    one = ms.measure_robust_accuracy(
        lambda columns: np.stack([-columns["a"], columns["a"]], axis=1),
        frame[["a"]],
        (frame["a"] > 0).astype(int),
        scale={"a": 2},
        **options,
    )
    assert one.value == (frame["a"].abs() > 0.2).mean()
    with pytest.raises(ms.UsageError, match="immutable: unknown column 'cuont': did you mean 'count'"):
        ms.measure_robust_accuracy(model, frame, labels, immutable=["cuont"], **options)
    with pytest.raises(ms.UsageError, match="categories names the column 'town', which holds no numbers"):
        ms.measure_robust_accuracy(
            model, frame.assign(town="Rome"), labels, categories={"town": ["Rome", "Oslo"]}, **options
        )


def test_a_model_of_categories_alone_is_searched_by_the_attack_that_changes_them():
    colors = np.arange(30)[:, None] % 3 * np.ones((1, 2))
    found = ms.measure_robust_accuracy(
        lambda rows: (rows[:, 0] == 2).astype(int),
        colors,
        (colors[:, 0] == 2).astype(int),
        eps=1,
        min_accuracy=0.5,
        immutable=[1],
        categories={0: [0, 1]},
    )
    assert found.value == pytest.approx(2 / 3)  # any color can become 0 or 1, and none can become 2
    assert list(found.details["attacks"]) == ["random search"]


def test_image_shape_of_the_gate_is_that_of_the_square_attacks_without_one():
    options = {"eps": 0.1, "min_accuracy": 0.5, **RANGE}
    values = [
        ms.measure_robust_accuracy(linear, ROWS[:60], LABELS[:60], image_shape=shape, attacks=[attack], **options)
        for shape, attack in (
            ((8, 8), ms.attacks.square(queries=20)),
            (None, ms.attacks.square(queries=20, image_shape=(8, 8))),
            (None, ms.attacks.square(queries=20)),
        )
    ]
    first, second, flat = (found.details["attacks"]["square"]["queries"] for found in values)
    assert first == second != flat


def test_missing_values_stay_where_their_column_does(rng):
    table = rng.normal(size=(100, 3))
    table[::2, 2] = np.nan

    def model(rows):
        assert (np.isnan(rows[:, 2]) | np.isin(rows[:, 2], table[:, 2])).all()
        return np.stack([-rows[:, 0], rows[:, 0]], axis=1)

    options = {"eps": 0.1, "min_accuracy": 0.5, "dependent": {1: lambda rows: rows[:, 2] + rows[:, 0]}}
    table[:, 1] = table[:, 2] + table[:, 0]
    labels = (table[:, 0] > 0).astype(int)
    for attack in (ms.attacks.square(queries=20), ms.attacks.random_search(queries=20), ms.attacks.boundary(queries=9)):
        found = ms.measure_robust_accuracy(model, table, labels, immutable=[2], attacks=[attack], **options)
        assert found.value == (np.abs(table[:, 0]) > 0.1).mean()
    with pytest.raises(ms.InputError, match="inputs hold NaN or infinity in 50 rows, first in row 0: leave"):
        ms.measure_robust_accuracy(model, table, labels, **options)


def test_what_is_not_allowed_is_not_counted():
    never = {"allowed": lambda before, after: np.zeros(len(after), bool)}
    found = ms.measure_robust_accuracy(linear, ROWS, LABELS, eps=5, min_accuracy=0.5, attacks=FEW, **never)
    assert found.value == 1.0


def test_groups_make_the_interval_wider():
    grouped = ms.Sampling(groups=np.repeat(np.arange(60), 5))
    options = {"eps": 0.2, "min_accuracy": 0.5, "attacks": FEW}
    plain = ms.measure_robust_accuracy(linear, ROWS, LABELS, **options)
    found = ms.measure_robust_accuracy(linear, ROWS, LABELS, sampling=grouped, **options)
    assert found.value == pytest.approx(plain.value)
    assert found.interval != plain.interval


def test_strings_of_a_classifier_of_scikit_learn_are_attacked_by_its_probabilities():
    sklearn = pytest.importorskip("sklearn.naive_bayes")
    names = np.array(["ant", "bee", "cat", "dog"])[LABELS]
    model = sklearn.GaussianNB().fit(ROWS, names)
    found = ms.measure_robust_accuracy(model, ROWS[:100], names[:100], eps=1, min_accuracy=0.5, attacks=FEW)
    assert 0.2 < found.value < found.quantities[1].value


def test_same_seed_gives_the_same_result():
    first, second = (
        ms.measure_robust_accuracy(linear, ROWS, LABELS, eps=0.2, min_accuracy=0.5, attacks=FEW, seed=7)
        for _ in range(2)
    )
    assert first.details["fooled_rows"] == second.details["fooled_rows"]
    assert first.quantities == second.quantities


def test_pictures_of_flattened_images_are_in_the_details():
    found = ms.measure_robust_accuracy(
        linear, ROWS, LABELS, eps=1, min_accuracy=0.5, image_shape=(8, 8), attacks=FEW, **RANGE
    )
    picture = found.details["pictures"][0]
    assert picture["width"] == 8
    assert len(picture["before"]) == len(picture["after"]) == 64
    assert picture["before"] != picture["after"]


TEXTS = np.array(["a good day", "a bad day", "good", "awful food", "so good it is", "bad"])
POSITIVE = np.array([1, 0, 1, 0, 1, 0])


def positive(texts):
    return np.array([[0.5, float("good" in text)] for text in texts])


def test_texts_are_fooled_by_edits_that_the_constraint_allows():
    options = {"norm": "edits", "eps": 1, "min_accuracy": 0.4}
    found = ms.measure_robust_accuracy(positive, TEXTS, POSITIVE, **options)
    assert found.value == 2 / 6  # "food" becomes "good", too
    keeps_words = {"allowed": lambda before, after: positive(after)[:, 1] == positive(before)[:, 1]}
    found = ms.measure_robust_accuracy(positive, TEXTS, POSITIVE, **options, **keeps_words)
    assert found.details["attacks"]["characters"]["fooled"] == 0


def test_codes_of_characters_stay_padded_and_within_their_edits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = np.zeros((40, 8), np.int64)
    for row in range(40):
        codes[row, : 3 + row % 5] = np.random.default_rng(row).integers(1, 4, 3 + row % 5)

    def model(ids):
        threes = (ids == 3).sum(axis=1)
        return np.stack([threes.astype(float), np.full(len(ids), 1.5)], axis=1)

    labels = model(codes).argmax(axis=1)
    found = ms.measure_robust_accuracy(model, codes, labels, norm="edits", eps=2, padding=0, min_accuracy=0.1)
    saved = ms.attacks.saved(found.details["adversarial_rows"])
    ids = saved.inputs[""]
    assert len(ids) > 10
    assert ids.dtype == np.int64
    assert all(0 not in row[: (row != 0).sum()] for row in ids)
    threes = (codes == 3).sum(axis=1)
    assert found.value == (np.where(threes >= 2, threes - 2 >= 2, threes + 2 < 2)).mean()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eps": 0}, ms.UsageError, "eps must be positive and finite"),
        ({"eps": -0.1}, ms.UsageError, "eps must be positive and finite"),
        ({"eps": float("nan")}, ms.UsageError, "eps must be positive and finite"),
        ({"eps": []}, ms.UsageError, "eps is empty"),
        ({"eps": [0.1, 0.1]}, ms.UsageError, "eps must not repeat"),
        ({"eps": 17}, ms.UsageError, r"eps=17.0 is larger than the range from low=0 to high=16"),
        ({"eps": 200, "norm": "l2"}, ms.UsageError, "eps=200.0 is larger than the range"),
        ({"min_accuracy": 1.5}, ms.UsageError, "min_accuracy must be a proportion"),
        ({"norm": "l1"}, ms.UsageError, "unknown norm 'l1'"),
        ({"low": 16, "high": 0}, ms.UsageError, "low must be below high"),
        ({"low": 1}, ms.InputError, r"inputs hold .* outside the range from low=1"),
        ({"min_accuracy": None}, ms.UsageError, "min_accuracy must be a number, got None"),
        ({"seed": -1}, ms.UsageError, "seed must be a whole number of at least 0, got -1"),
        ({"scale": [1, 2]}, ms.UsageError, "scale must be a number, or one for each feature"),
        ({"scale": np.zeros(64)}, ms.UsageError, "scale must be positive and finite"),
        ({"immutable": [3], "categories": {3: [0, 16]}}, ms.UsageError, "immutable and categories both name feature 3"),
        ({"categories": {3: [0, 17]}}, ms.UsageError, r"categories\[3\] must lie in the range from low=0 to high=16"),
        ({"categories": {3: [0, float("nan")]}}, ms.UsageError, r"categories\[3\] must be finite numbers"),
        ({"categories": {3: [0, 16]}, "attacks": FEW}, ms.UsageError, "square changes no categories"),
        ({"inputs": np.full((300, 64), 2**60), "high": None}, ms.InputError, r"whole numbers beyond 2\*\*53"),
        ({"image_shape": (7, 7), "attacks": FEW}, ms.UsageError, "image_shape must be"),
        ({"categories": [3]}, ms.UsageError, "categories must be a mapping of columns to all of their categories"),
        ({"categories": {3: 1}}, ms.UsageError, r"categories\[3\] must be a list of all categories"),
        ({"dependent": ["x"]}, ms.UsageError, "dependent must be a mapping of columns to functions"),
        ({"image_shape": 64}, ms.UsageError, "image_shape must be"),
        ({"immutable": range(64)}, ms.UsageError, "eps is 0 for every feature that may change"),
        ({"immutable": [64]}, ms.InputError, "there is no feature 64"),
        ({"integer": [0]}, ms.InputError, r"integer= names columns whose rows hold fractions, \[0\]"),
        ({"attacks": []}, ms.UsageError, "attacks is empty"),
        ({"attacks": "square"}, ms.UsageError, "attacks must be a list"),
        ({"attacks": [ms.attacks.square]}, ms.UsageError, "attacks holds square, which is no attack"),
        ({"attacks": [ms.attacks.square(), ms.attacks.square()]}, ms.UsageError, "attacks has 'square' twice"),
        ({"attacks": [ms.attacks.characters()]}, ms.UsageError, "characters does not search norm='linf'"),
        ({"image_shape": (7, 7)}, ms.UsageError, "image_shape must be"),
        ({"labels": LABELS + 7}, ms.InputError, "labels hold .* and the model predicts the classes 0 to 3"),
        ({"labels": LABELS[:10]}, ms.InputError, "there are 10 labels for 300 rows"),
        ({"inputs": np.where(np.arange(64) == 5, np.nan, ROWS)}, ms.InputError, "inputs hold NaN or infinity in 300"),
        ({"dependent": {3: lambda rows: rows[:, 0]}}, ms.InputError, r"dependent\[3\] returns .* for row 0"),
        ({"dependent": {"y": len}}, ms.UsageError, "dependent: unknown input 'y'"),
        ({"inputs": ROWS.astype(np.uint8), "eps": 0.5}, ms.UsageError, "eps=0.5 changes no value of these inputs"),
        ({"inputs": ROWS[:0], "labels": LABELS[:0]}, ms.InputError, "inputs are empty"),
        ({"allowed": lambda before, after: 1 / 0, "eps": 1}, ms.UsageError, "allowed raised ZeroDivisionError"),
        ({"low": {"a": 1}}, ms.UsageError, "low names the column 'a': the input is an array"),
        ({"padding": 0}, ms.UsageError, "padding applies to norm='edits' only"),
        ({"norm": "edits", "low": None, "high": None}, ms.InputError, "inputs must be text"),
        (
            {"inputs": ROWS.astype(str)[:, 0], "norm": "edits", "eps": 0.5},
            ms.UsageError,
            "eps must be a whole number of edits",
        ),
        (
            {"inputs": ["ab", "cd"] * 150, "norm": "edits", "eps": 10**9, "low": None, "high": None},
            ms.UsageError,
            "eps=1000000000.0 is larger than the longest text",
        ),
        ({"inputs": ROWS > 8}, ms.InputError, "inputs must be integers or floats for norm='linf', got bool"),
    ],
)
def test_bad_input_is_one_clear_error(change, error, message):
    arguments = {"inputs": ROWS, "labels": LABELS, "eps": 0.1, "min_accuracy": 0.5, **RANGE, **change}
    with pytest.raises(error, match=message):
        ms.measure_robust_accuracy(linear, **arguments)


def test_scores_are_required_by_attacks_that_read_them():
    with pytest.raises(ms.UsageError, match=r"square reads scores, and .* returns labels alone"):
        ms.measure_robust_accuracy(
            lambda rows: linear(rows).argmax(axis=1), ROWS, LABELS, eps=0.1, min_accuracy=0.5, attacks=FEW
        )


def test_model_that_raises_for_some_rows_is_an_error_that_names_the_row():
    def model(rows):
        if (rows[:, 0] > 15.99).any():
            raise ValueError("out of stock")
        return linear(rows)

    rows = ROWS[ROWS[:, 0] < 15.9]
    rows[20, 0] = 15.95
    with pytest.raises(ms.InputError, match=r"raised for row 20, .* \(ValueError: out of stock\)"):
        ms.measure_robust_accuracy(model, rows, linear(rows).argmax(axis=1), eps=0.05, min_accuracy=0.5, **RANGE)
    rows[1, 0] = 16
    with pytest.raises(ms.InputError, match=r"raised for row 1, .* \(ValueError: out of stock\)"):
        ms.measure_robust_accuracy(model, rows, linear(rows).argmax(axis=1), eps=0.05, min_accuracy=0.5, **RANGE)


def test_file_without_adversarial_rows_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **{"inputs/x": np.zeros((1, 2))})
    with pytest.raises(ms.ArtifactError, match="holds no adversarial rows of assert_robust"):
        ms.attacks.saved(tmp_path / "x.npz")


def test_torch_module_is_attacked_by_its_gradients_first_where_it_has_some():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(64, 4, bias=False).eval()
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(WEIGHTS.T))
    options = {"eps": 2, "min_accuracy": 0.5, **RANGE}
    found = ms.measure_robust_accuracy(module, ROWS[:4], LABELS[:4], **options)
    assert list(found.details["attacks"]) == ["PGD", "square"]

    class Detached(torch.nn.Module):
        def forward(self, rows):
            return module(rows).detach()

    found = ms.measure_robust_accuracy(Detached().eval(), ROWS[:4], LABELS[:4], **options)
    assert list(found.details["attacks"]) == ["square"]
    assert "PGD was left out: module returns scores without gradients" in found.findings
