"""`columns=` and `exclude=` of the data gates: some columns are compared, the others are not read."""

import re

import numpy as np
import polars as pl
import pytest

import pytest_modelserve as ms

GATES = {"drift": (ms.measure_drift, {"max_distance": 0.2}), "quality": (ms.measure_data_quality, {"max_rate": 0.05})}


def rows(n, *, first_id=0, seed=0):
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, n)
    return {
        "id": np.arange(first_id, first_id + n),
        "age": age,
        "income": 50 * age + rng.normal(0, 100, n),
        "city": rng.choice(["Bonn", "Rom", "Wien"], n),
        "face": rng.normal(size=(n, 3)),
        "note": [f"text {value:.6f}" for value in rng.normal(size=n)],
    }


PROFILE = ms.reference_profile(rows(4_000), name="training", sketch_rows=500)
NIGHT = rows(2_000, first_id=900_000, seed=1)


@pytest.fixture(params=GATES)
def gate(request):
    function, budget = GATES[request.param]
    return lambda *args, **options: function(*args, **budget, **options)


def test_an_id_that_moves_every_night_is_left_out(gate):
    assert gate(NIGHT, PROFILE).verdict is ms.Verdict.FAIL
    evidence = gate(NIGHT, PROFILE, exclude=["id"])
    assert evidence.verdict is not ms.Verdict.FAIL
    assert evidence.findings[-1] == "compared 5 of the profile's 6 columns, without 'id'"
    assert (evidence.reference.name, evidence.reference.sha256) == ("training", PROFILE.digest)


def test_the_named_columns_alone_are_compared(gate):
    broken = {**NIGHT, "city": [7] * 2_000, "extra": NIGHT["id"]}
    evidence = gate(broken, PROFILE, columns=["age", "income"])
    assert evidence.verdict is ms.Verdict.PASS, str(evidence)
    assert evidence.findings[-1] == "compared 2 of the profile's 6 columns, without 'id', 'city', 'face', 'note'"


def test_a_column_that_only_the_data_have_can_be_excluded(gate):
    profile = ms.reference_profile({name: rows(4_000)[name] for name in ("age", "income")})
    data = {name: NIGHT[name] for name in ("id", "age", "income")}
    evidence = gate(data, profile, exclude=("id",))
    assert evidence.verdict is ms.Verdict.PASS
    assert not evidence.findings or "without" not in evidence.findings[-1]


def test_figures_of_chosen_columns_are_those_of_a_profile_of_them():
    names = ("age", "city", "face")
    own = ms.reference_profile({name: rows(4_000)[name] for name in names}, sketch_rows=500)
    data = {name: NIGHT[name] for name in names}
    chosen = ms.measure_drift(NIGHT, PROFILE, max_distance=0.2, columns=names)
    alone = ms.measure_drift(data, own, max_distance=0.2)
    assert (chosen.value, chosen.interval, chosen.details) == (alone.value, alone.interval, alone.details)


def test_pairs_of_columns_that_are_left_out_are_not_tested():
    apart = {**NIGHT, "income": NIGHT["income"][::-1]}
    assert ms.measure_drift(apart, PROFILE, max_distance=0.2, columns=["age", "income"]).verdict is ms.Verdict.FAIL
    assert ms.measure_drift(apart, PROFILE, max_distance=0.2, columns=["age", "city"]).verdict is ms.Verdict.PASS


def test_columns_of_profiles_queries_files_and_arrays_are_chosen_alike(gate, tmp_path):
    plain = {name: values for name, values in NIGHT.items() if name != "face"}
    pl.DataFrame(plain).write_csv(tmp_path / "night.csv")
    forms = [ms.reference_profile(NIGHT, like=PROFILE), pl.LazyFrame(plain), tmp_path / "night.csv"]
    expected = gate(NIGHT, PROFILE, columns=["age", "income"]).verdict
    assert [gate(form, PROFILE, columns=["age", "income"]).verdict for form in forms] == [expected] * 3
    table = np.stack([NIGHT["id"], NIGHT["age"]], axis=1)
    profile = ms.reference_profile(np.stack([rows(4_000)["id"], rows(4_000)["age"]], axis=1), columns=["id", "age"])
    assert gate(table, profile).verdict is ms.Verdict.FAIL
    assert gate(table, profile, columns=["age"]).verdict is gate(table, profile, exclude=["id"]).verdict is expected


def test_an_embedding_is_one_column_and_lengths_follow_their_text():
    evidence = ms.measure_drift(NIGHT, PROFILE, max_distance=0.2, columns=["face", "note"])
    assert set(evidence.details["distances"]) == {"face[0]", "face[1]", "face[2]", "note", "note (length)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["agee"]}, "columns: unknown column 'agee': did you mean 'age'? Known: 'id', 'age', 'income', "),
        ({"exclude": ["incme"]}, "exclude: unknown column 'incme': did you mean 'income'?"),
        ({"columns": "age"}, "columns must be a collection of texts; got 'age': pass ('age',)"),
        ({"columns": ["age"], "exclude": ["id"]}, "columns and exclude cannot be given together"),
        ({"columns": []}, "columns names no column to compare"),
        ({"exclude": ["id", "age", "income", "city", "face", "note"]}, "exclude leaves no column to compare"),
    ],
)
def test_an_impossible_choice_is_one_error(gate, options, message):
    with pytest.raises(ms.UsageError, match=f"^{re.escape(message)}"):
        gate(NIGHT, PROFILE, **options)
