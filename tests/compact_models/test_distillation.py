"""Distillation beside its control: the loss, the gain with its interval, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.compact_models import distill
from pytest_modelserve.compact_models.distillation_gain import _gain_bounds
from pytest_modelserve.evidence import Recorder, recording

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1200, 6)).astype(np.float32)
WEIGHTS = RNG.standard_normal((6, 3)).astype(np.float32)
CLEAN = (X @ WEIGHTS).argmax(axis=1)
TRAINING, HELD_OUT = slice(0, 300), slice(300, 1200)
NOISY = np.where(RNG.random(1200) < 0.6, RNG.integers(0, 3, 1200), CLEAN)
SPEC = ms.TrainSpec(loss="cross_entropy", epochs=10, learning_rate=0.02)


def build():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def build_wide():
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


def perfect():
    """A teacher that knows the true classes."""
    teacher = nn.Sequential(nn.Linear(6, 3))
    with torch.no_grad():
        teacher[0].weight.copy_(torch.from_numpy(WEIGHTS.T * 5))
        teacher[0].bias.zero_()
    return teacher.eval()


def student(labels=NOISY, fit=SPEC, make=build):
    data = {"x": X[TRAINING], "y": labels[TRAINING].astype(np.int64)}
    return ms.ModelSource(name="student", build=make, fit=fit, data=data, example_inputs=X[:2])


def test_teacher_that_knows_more_than_the_labels_helps(store):
    recorder = Recorder("a test", "test.py::test")
    with recording(recorder):
        small = distill(perfect(), student(), soft_weight=1.0, held_out=(X[HELD_OUT], CLEAN[HELD_OUT]), store=store)
    evidence = small.evidence
    assert evidence.verdict is None
    assert evidence.interval.low > 0
    assert evidence.summary.endswith("distillation helps")
    assert [each.evidence.gate for each in recorder.records()] == ["distillation gain"]
    gain, accuracy, control, teacher = (quantity.value for quantity in evidence.quantities)
    assert gain == pytest.approx(accuracy - control)
    assert teacher == 1.0


def test_teacher_in_training_mode_is_used_in_eval_mode(store):
    teacher = nn.Sequential(*perfect(), nn.Dropout(0.9)).train()
    small = distill(teacher, student(), held_out=(X[HELD_OUT], CLEAN[HELD_OUT]), store=store)
    assert small.evidence.quantities[3].value == 1.0
    assert teacher.training


def test_gain_is_that_of_the_two_models_on_the_rows(store):
    small = distill(perfect(), student(), held_out=(X[HELD_OUT], CLEAN[HELD_OUT]), store=store)

    def correct(model):
        with torch.no_grad():
            return model.module()(torch.from_numpy(X[HELD_OUT])).argmax(1).numpy() == CLEAN[HELD_OUT]

    assert small.evidence.value == pytest.approx(correct(small).mean() - correct(small.control).mean())
    assert small.control.sha256 == ms.train(student(), store=store).sha256
    assert small.sha256 != small.control.sha256


def test_teacher_that_knows_nothing_shows_no_gain(store):
    teacher = nn.Sequential(nn.Linear(6, 3)).eval()
    with torch.no_grad():
        teacher[0].weight.zero_()
    small = distill(teacher, student(CLEAN), soft_weight=1e-6, held_out=(X[HELD_OUT], CLEAN[HELD_OUT]), store=store)
    assert small.evidence.summary.endswith("no gain is shown")
    assert str(small).startswith("student-distilled, seed 0: gain ")


def test_several_seeds_have_a_mean_gain_and_the_first_model(store):
    small = distill(
        perfect(), student(), soft_weight=1.0, seeds=(3, 4, 5), held_out=(X[HELD_OUT], CLEAN[HELD_OUT]), store=store
    )
    by_seed = small.evidence.details["gain_by_seed"]
    assert small.seed == 3
    assert list(by_seed) == ["3", "4", "5"]
    assert small.evidence.value == pytest.approx(np.mean(list(by_seed.values())))


def test_loss_of_one_step_is_the_sum_of_its_parts(store):
    """One step of SGD on all rows moves the weights along the gradient of the documented loss."""
    spec = ms.TrainSpec(loss="cross_entropy", epochs=1, batch_size=300, optimizer="sgd", learning_rate=0.5)
    teacher, temperature, soft = perfect(), 3.0, 0.7
    small = distill(teacher, student(fit=spec), temperature=temperature, soft_weight=soft, store=store)
    torch.manual_seed(0)
    module = build()
    x, y = torch.from_numpy(X[TRAINING]), torch.from_numpy(NOISY[TRAINING])
    logits = module(x)
    known = (teacher(x) / temperature).softmax(1)
    divergence = (known * (known.log() - (logits / temperature).log_softmax(1))).sum(1).mean()
    loss = (1 - soft) * nn.functional.cross_entropy(logits, y) + soft * temperature**2 * divergence
    loss.backward()
    expected = module[0].weight - 0.5 * module[0].weight.grad
    torch.testing.assert_close(small.module()[0].weight, expected.detach(), rtol=1e-4, atol=1e-6)


def test_matched_hidden_layers_become_alike(store):
    teacher = ms.train(dataclasses.replace(student(CLEAN, make=build_wide), name="wide"), store=store)
    settings = {"soft_weight": 0.01, "hidden": [("0", "0")], "store": store}
    source = student(fit=dataclasses.replace(SPEC, epochs=30))

    def explained(model):
        """R² of the teacher's hidden layer by a linear map of the student's."""
        with torch.no_grad():
            own, wanted = (m.module()[0](torch.from_numpy(X[HELD_OUT])).double().numpy() for m in (model, teacher))
        own = np.column_stack([own, np.ones(len(own))])
        fitted = own @ np.linalg.lstsq(own, wanted, rcond=None)[0]
        return 1 - (wanted - fitted).var() / wanted.var()

    matched = distill(teacher, source, hidden_weight=10.0, **settings)
    assert matched.module()[0].out_features == 16
    assert explained(matched) > 0.99 or explained(matched) >= explained(distill(teacher, source, store=store)) - 1e-6


def test_augmented_rows_are_shown_to_the_teacher_too(store):
    seen = []

    class Teacher(nn.Module):
        def forward(self, x):
            seen.append(float(x.mean()))
            return x @ torch.from_numpy(WEIGHTS)

    def shift(batch, generator):
        return {**batch, "x": batch["x"] + 100.0}

    spec = ms.TrainSpec(loss="cross_entropy", epochs=1, learning_rate=1e-4, augmentation=shift)
    distill(Teacher().eval(), student(fit=spec), store=store)
    assert sum(value > 90 for value in seen) == 5  # batches of 64 of 300 rows


def test_lineage_names_the_teacher_and_the_settings(store):
    (step,) = distill(perfect(), student(), temperature=3, store=store).lineage
    assert step.stage == "distillation"
    assert (step.settings["teacher"], step.settings["temperature"]) == ("Sequential", 3.0)
    assert len(step.settings["losses"]) == SPEC.epochs


def test_interval_over_seeds_and_rows_covers_the_true_gain():
    """400 worlds with effects of rows, of seeds and of both; each end may miss at most about 5 %."""
    rng = np.random.default_rng(1)
    misses = np.zeros(2)
    for _ in range(400):
        gains = 0.02 + 0.02 * rng.standard_normal((5, 1)) + 0.05 * rng.standard_normal(300)
        draws = rng.random((5, 300))
        differences = np.where(draws < 0.1 + gains / 2, 1.0, np.where(draws > 0.9 + gains / 2, -1.0, 0.0))
        bounds, _ = _gain_bounds(differences, 0.95)
        misses += [bounds.low > 0.02, bounds.high < 0.02]
    assert (misses / 400 <= 0.08).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "big.pt"}, "teacher must be a TrainedModel or a torch module; got str"),
        ({"teacher": nn.Linear(6, 4)}, "the teacher has 4 classes and the student 3 classes"),
        (
            {"teacher": nn.Linear(5, 3)},
            "the teacher does not take the inputs 'x' of the training data: the module fails on",
        ),
        ({"teacher": nn.Sequential(nn.Linear(6, 3), nn.Flatten(0))}, "the teacher must return logits (rows, classes)"),
        ({"student": build()}, "student must be a ModelSource; got Sequential"),
        ({"student": student(fit=lambda module, data: None)}, "must be ms.TrainSpec(loss='cross_entropy', ...)"),
        ({"student": student(fit=ms.TrainSpec(loss="nll", epochs=1))}, "loss='cross_entropy'; got 'nll'"),
        ({"temperature": 0}, "temperature must be a number above 0; got 0"),
        ({"temperature": float("nan")}, "temperature must be a number above 0; got nan"),
        ({"soft_weight": 1.5}, "soft_weight must be a number above 0 and at most 1; got 1.5"),
        ({"hidden": None}, "hidden must be pairs of layers, [(of the teacher, of the student), ...]; got None"),
        ({"hidden": [("first", "0")]}, "hidden: unknown layer of the teacher 'first'"),
        ({"hidden": [("0", "9")]}, "hidden: unknown layer of the student '9'"),
        (
            {"hidden": ("0", "0")},
            "hidden must be pairs of layers, [(of the teacher, of the student), ...]; got ('0', '0')",
        ),
        ({"hidden": [("0", "0")], "hidden_weight": -1}, "hidden_weight must be a number above 0; got -1"),
        ({"seeds": ()}, "seeds must be different integers, at least one; got ()"),
        ({"seeds": (1, 1)}, "seeds must be different integers, at least one; got (1, 1)"),
        ({"seeds": (-1,)}, "seed must be an integer from 0 to 4294967295"),
        ({"held_out": X[:5]}, "held_out must be a pair of inputs and labels"),
        ({"held_out": (X[:5], CLEAN[:4])}, "held_out: labels have shape [4], expected [5]"),
        ({"held_out": (X[:5], CLEAN[:5] * 1.0)}, "held_out: labels must be integers; got float64"),
        ({"held_out": (X[:5], CLEAN[:5] + 1)}, "held_out: labels must be classes from 0 to 2; got values from "),
        ({"held_out": (X[:0], CLEAN[:0])}, "held_out has no rows"),
        ({"held_out": (X[:5, :2], CLEAN[:5])}, "fails on the inputs: RuntimeError: mat1 and mat2"),
        ({"confidence": 95}, "confidence must be above 0.5 and below 1 (for example 0.95), got 95"),
        ({"confidence": "high"}, "confidence must be above 0.5 and below 1 (for example 0.95), got 'high'"),
    ],
)
def test_bad_arguments_are_refused(store, changes, message):
    arguments = {"teacher": perfect(), "student": student(), "store": store, **changes}
    with pytest.raises(ms.UsageError) as caught:
        distill(arguments.pop("teacher"), arguments.pop("student"), **arguments)
    assert message in str(caught.value)


def test_teacher_with_nan_logits_is_refused(store):
    teacher = perfect()
    with torch.no_grad():
        teacher[0].bias[0] = torch.nan
    with pytest.raises(ms.InputError, match="the teacher's logits are NaN or infinite for 300 of 300 training rows"):
        distill(teacher, student(), store=store)
