"""Membership inference with shadow models, which are entries of the store."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import InputError, UsageError

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(2)
ROWS = RNG.normal(size=(1_050, 4)).astype(np.float32)
LABELS = RNG.integers(0, 2, 1_050)
OTHERS = {"x": ROWS[50:], "y": LABELS[50:]}


def build():
    return torch.nn.Linear(4, 2)


def remember(module, data):
    """Give the module a checksum of its rows: what depends on the data alone is equal wherever it is trained."""
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(data["x"]).mean(0) * torch.tensor([[-1.0], [1.0]]))


def source(fit=remember):
    return ms.ModelSource(
        name="linear", build=build, fit=fit, data={"x": ROWS[:50], "y": LABELS[:50]}, example_inputs=ROWS[:2]
    )


def measure(model, store, others=OTHERS, **given):
    settings = {"label_column": "y", "shadows": 6, "processes": 1, "max_tpr": 0.2} | given
    return ms.measure_membership_leak(model, None, others, store=store, **settings)


def test_shadow_models_are_entries_of_the_store_and_trained_once(tmp_path):
    store = Store(tmp_path)
    first = measure(source(), store)
    names = sorted(entry.what for entry in store.entries())
    assert names == [f"training of linear{suffix}" for suffix in ("", *(f"-shadow-{i}" for i in range(1, 7)))]
    assert first.details["attacks"][0]["about"].startswith("6 shadow models of 35")

    def untrained(module, data):
        raise AssertionError

    again = measure(ms.train(source(), store=store), store)
    assert again.details == first.details
    assert len(store.entries()) == 7


def test_nothing_is_trained_before_the_rows_are_checked(tmp_path):
    store = Store(tmp_path)
    few = {name: array[:900] for name, array in OTHERS.items()}
    assert measure(source(), store, few).verdict is ms.Verdict.INCONCLUSIVE
    for others, given in (({"x": ROWS, "y": LABELS}, {}), (OTHERS, {"processes": 0}), (OTHERS, {"time_limit_s": -1})):
        with pytest.raises((InputError, UsageError)):
            measure(source(), store, others, **given)
    assert not store.entries()


def test_labels_may_be_a_column_and_whole_floats(tmp_path):
    one = ms.ModelSource(
        name="linear",
        build=build,
        fit=remember,
        data={"x": ROWS[:50], "y": LABELS[:50, np.newaxis]},
        example_inputs=ROWS[:2],
    )
    others = OTHERS | {"y": LABELS[50:, np.newaxis].astype(np.float64)}
    column = measure(one, Store(tmp_path), others, shadows=4)
    assert column.details == measure(source(), Store(tmp_path), shadows=4).details


def test_text_keeps_its_length(tmp_path):
    def name(rows):
        return np.array(["Bern", "Oberentfelden"])[(rows[:, 0] > 2).astype(int)]

    def check(module, data):
        assert set(data["city"]) <= {"Bern", "Oberentfelden"}
        remember(module, data)

    data = {"x": ROWS[:50], "y": LABELS[:50], "city": np.array(["Bern"] * 50)}
    named = ms.ModelSource(name="linear", build=build, fit=check, data=data, example_inputs=ROWS[:2])
    others = OTHERS | {"city": name(ROWS[50:]).astype(object)}

    def deploy(trained):
        module = trained.module()
        return lambda columns: module(torch.from_numpy(columns["x"])).detach().numpy()

    assert "Oberentfelden" in others["city"]
    assert measure(named, Store(tmp_path), others, shadows=4, deploy=deploy).details["members"] == 50


def test_members_may_be_some_rows_of_the_training(tmp_path):
    some = {"x": ROWS[[4, 9, 30]], "y": LABELS[[4, 9, 30]]}
    given = {"label_column": "y", "shadows": 4, "processes": 1, "max_tpr": 0.2, "store": Store(tmp_path)}
    assert ms.measure_membership_leak(source(), some, OTHERS, **given).details["members"] == 3
    with pytest.raises(InputError, match="members has 3 of 3 rows that are not in the data of source 'linear'"):
        ms.measure_membership_leak(source(), some | {"x": ROWS[:3] + 1}, OTHERS, **given)


def test_what_is_served_is_attacked(tmp_path):
    def deploy(trained):
        module = trained.module()
        return lambda rows: torch.softmax(module(torch.from_numpy(rows)), 1).detach().numpy().round(1)

    evidence = measure(source(), Store(tmp_path), shadows=4, deploy=deploy)
    assert evidence.details["members"] == 50


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"label_column": None}, UsageError, "label_column is missing: which of the data of source 'linear'"),
        ({"label_column": "label"}, UsageError, "label_column: unknown name in the data of the source 'label'"),
        ({"others": (ROWS, LABELS)}, InputError, "non_members must hold the data of source 'linear' by name"),
        ({"others": {"x": ROWS}}, InputError, "it lacks 'y'"),
        ({"others": OTHERS | {"y": OTHERS["y"] + 0.5}}, InputError, "'y' has dtype float64, and the source int64"),
        ({"others": OTHERS | {"y": OTHERS["y"].astype("U1")}}, InputError, "'y' has dtype <U1, and the source int64"),
        (
            {"others": OTHERS | {"y": OTHERS["y"] + np.uint64(2**63)}},
            InputError,
            "which does not hold all of its values",
        ),
        ({"others": OTHERS | {"y": LABELS}}, InputError, "non_members: "),
        ({"others": {"x": ROWS[:, :2], "y": LABELS}}, InputError, "'x' has rows of shape (2,), and the source (4,)"),
        ({"shadows": 2}, UsageError, "shadows must be an integer of at least 4"),
        ({"reference_models": print}, UsageError, "reference_models is for a served model"),
        ({"others": {"x": ROWS, "y": LABELS}}, InputError, "non_members holds 50 of 1050 rows that are members"),
    ],
)
def test_what_does_not_suit_a_source_is_refused(tmp_path, given, error, message):
    with pytest.raises(error) as raised:
        measure(source(), Store(tmp_path), **given)
    assert message in str(raised.value)
