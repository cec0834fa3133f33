"""What a user holds: ready predictions, frames, tensors, estimators and DataLoaders in the accuracy gates."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

import pytest_modelserve as ms

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(400, 3))
LABELS = (ROWS[:, 0] > 0).astype(np.int64)
OLD = np.eye(2)[LABELS] * 0.8 + 0.1
NEW = np.where((np.arange(400) % 40 == 0)[:, np.newaxis], OLD[:, ::-1], OLD)
METRICS = [
    ("accuracy", {"max_drop": 0.05}, None),
    ("f1", {"max_drop": 0.1}, None),
    ("roc_auc", {"max_drop": 0.1}, None),
    ("log_loss", {"max_rise": 0.2}, ms.Output(scores="probabilities")),
]


def figures(evidence):
    return evidence.verdict, [(each.name, each.value, each.interval) for each in evidence.quantities]


@pytest.mark.parametrize(("metric", "budget", "output"), METRICS)
def test_ready_outputs_have_the_verdict_of_their_models_to_the_last_bit(metric, budget, output):
    def pick(scores):
        return scores[:, 1] if metric == "roc_auc" else scores

    models = [ms.serve(lambda x, scores=scores: pick(scores)) for scores in (NEW, OLD)]
    options = {"metric": metric, "output": output, "slices": {"sign": LABELS}, **budget}
    served = ms.measure_accuracy_parity(*models, ROWS, LABELS, **options)
    for new, old in ((NEW, OLD), (torch.from_numpy(NEW), pd.DataFrame(OLD, columns=["output_0", "output_1"]))):
        new, old = (pick(new), pick(np.asarray(old))) if metric == "roc_auc" else (new, old)
        assert figures(ms.measure_accuracy_parity(new, old, labels=LABELS, **options)) == figures(served)
    mixed = ms.measure_accuracy_parity(models[0], pick(OLD), ROWS, LABELS, **options) if metric != "roc_auc" else served
    assert figures(mixed) == figures(served)


def test_predicted_labels_are_compared_as_labels():
    words = np.array(["no", "yes"])[LABELS]
    for given in (words, words.tolist(), pd.Series(words)):
        assert ms.measure_accuracy(words, labels=given, min_value=0.9).verdict is ms.Verdict.PASS


def test_an_estimator_is_judged_on_its_own_frame_and_slices_see_it():
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    model = LogisticRegression().fit(frame, LABELS)
    evidence = ms.measure_accuracy(
        model, frame, LABELS, min_value=0.9, output="label", slices={"high": lambda data: data["b"] > 0}
    )
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.subject.name == "LogisticRegression"


def test_a_data_loader_of_pairs_holds_inputs_and_labels():
    module = torch.nn.Linear(3, 2).eval()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
        module.bias.zero_()
    data = TensorDataset(torch.from_numpy(ROWS).float(), torch.from_numpy(LABELS))
    assert ms.measure_accuracy(module, DataLoader(data, batch_size=64), min_value=0.9).verdict is ms.Verdict.PASS


def of_first(x):
    return np.stack([-x[:, 0], x[:, 0]], axis=1)


COLUMNS = {"x": ROWS, "y": LABELS}
ITEMS = [{"x": row, "y": label} for row, label in zip(ROWS, LABELS, strict=True)]
BATCHES = [{"x": ROWS[start : start + 64], "y": LABELS[start : start + 64]} for start in range(0, 400, 64)]


@pytest.mark.parametrize("inputs", [COLUMNS, BATCHES, DataLoader(ITEMS, 64)])
def test_labels_can_be_an_entry_of_the_inputs_which_the_model_does_not_get(inputs):
    def model(feed):
        assert list(feed) == ["x"]
        return of_first(feed["x"])

    assert ms.measure_accuracy(model, inputs, "y", min_value=0.9).verdict is ms.Verdict.PASS


@pytest.mark.parametrize("library", [pd, pl])
def test_labels_can_be_a_column_of_the_frame_which_the_model_does_not_get(library):
    frame = library.DataFrame({"a": ROWS[:, 0], "b": ROWS[:, 1], "y": LABELS})
    model = LogisticRegression().fit(frame[["a", "b"]], LABELS)
    assert ms.measure_accuracy(model, frame, "y", min_value=0.9).verdict is ms.Verdict.PASS


def test_batches_are_one_batch_beside_labels():
    evidence = ms.measure_accuracy(of_first, [ROWS[:100], ROWS[100:]], LABELS, min_value=0.9)
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 400)


@pytest.mark.parametrize("inputs", [ROWS, COLUMNS, None, [COLUMNS, {"x": ROWS}]])
def test_labels_that_are_no_column_of_the_inputs_are_refused(inputs):
    with pytest.raises(ms.InputError, match="labels is 'label', which is no column of the inputs: pass an array"):
        ms.measure_accuracy(of_first, inputs, "label", min_value=0.9)


def test_labels_in_mappings_are_asked_for_by_name():
    with pytest.raises(
        ms.UsageError, match=r"yields no pairs .* the name of the labels in each batch, such as labels="
    ):
        ms.measure_accuracy(of_first, iter(BATCHES), min_value=0.9)


@pytest.mark.parametrize("library", [pd, pl])
def test_slices_can_be_a_frame(library):
    sides = {"side": np.where(LABELS, "right", "left"), "far": np.abs(ROWS[:, 0]) > 1}
    options = {"labels": LABELS, "max_drop": 0.2}
    budget = {"max_drop": 0.3, "min_rows": 50}
    of_mapping = ms.measure_accuracy_parity(NEW, OLD, slices=ms.Slices(sides, **budget), **options)
    of_frame = ms.measure_accuracy_parity(NEW, OLD, slices=ms.Slices(library.DataFrame(sides), **budget), **options)
    assert figures(of_frame) == figures(of_mapping)
    assert "drop side=left" in [quantity.name for quantity in of_frame.quantities]


def test_percent_in_place_of_a_proportion_is_named():
    with pytest.raises(ms.UsageError, match=r"^min_value must be above 0 and below 1, got 80: write 80 % as 0\.8$"):
        ms.measure_accuracy(OLD, labels=LABELS, min_value=80)


def test_a_choice_among_many_outputs_lists_ten_of_them():
    columns = {f"out{number}x": OLD[:, 0] for number in range(30)}
    with pytest.raises(ms.UsageError, match=r"'out9x', …\): give one, output='out29x'; for scores of several classes"):
        ms.measure_accuracy(columns, labels=LABELS, min_value=0.8)


@pytest.mark.parametrize("inputs", [ROWS, None, iter([ROWS]), iter([])])
def test_missing_labels_are_named(inputs):
    with pytest.raises(ms.UsageError, match="labels is missing: "):
        ms.measure_accuracy(OLD, inputs, min_value=0.9)
