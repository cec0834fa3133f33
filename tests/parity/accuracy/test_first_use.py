"""What a user holds: ready predictions, frames, tensors, estimators and DataLoaders in the accuracy gates."""

import numpy as np
import pandas as pd
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


@pytest.mark.parametrize("inputs", [ROWS, None, iter([ROWS]), iter([])])
def test_missing_labels_are_named(inputs):
    with pytest.raises(ms.UsageError, match="labels is missing: "):
        ms.measure_accuracy(OLD, inputs, min_value=0.9)
