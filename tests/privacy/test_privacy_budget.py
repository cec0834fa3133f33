"""The privacy budget gate: what is accounted for, and what the audit of the same training code finds."""

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import UsageError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 4)).astype(np.float32)
DATA = {"x": X, "y": X[:, :3].argmax(1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def trained(store, *, name="small", optimizer=None, noise=2.1, data=DATA, **options):
    privacy = ms.PrivateTraining(
        noise_multiplier=noise, delta=1e-5, max_grad_norm=1.0, accountant="rdp", optimizer=optimizer
    )
    spec = ms.TrainSpec(**{"loss": "cross_entropy", "epochs": 5, "batch_size": 40, "privacy": privacy, **options})
    source = ms.ModelSource(name=name, build=lambda: nn.Linear(4, 3), fit=spec, data=data, example_inputs=X[:2])
    return ms.train(source, store=store)


def sabotaged(kind):
    """Return a private optimizer of opacus that keeps less than it says."""
    from opacus.optimizers import DPOptimizer

    class Sabotaged(DPOptimizer):
        def clip_and_accumulate(self):
            if kind == "no clipping":
                for each in self.params:
                    each.summed_grad = each.grad_sample.sum(0)
            elif kind == "rows clipped together":
                sums = [each.grad_sample.sum(0) for each in self.params]
                norm = torch.sqrt(sum(each.square().sum() for each in sums))
                for each, total in zip(self.params, sums, strict=True):
                    each.summed_grad = total * min(1.0, self.max_grad_norm / float(norm + 1e-6))
            else:
                super().clip_and_accumulate()

        def add_noise(self):
            claimed, self.step_number = self.noise_multiplier, getattr(self, "step_number", 0) + 1
            if kind == "the same noise":
                self.generator.manual_seed(7)
            self.noise_multiplier = claimed / 4 if kind == "quarter" else claimed
            super().add_noise()
            self.noise_multiplier = claimed
            if kind == "one step without noise" and self.step_number == 9:
                for each in self.params:
                    each.grad = each.summed_grad.clone()
            if kind == "bias without noise":
                self.params[1].grad = self.params[1].summed_grad.clone()

    return Sabotaged


def test_an_honest_training_passes_and_its_evidence_has_both_epsilons_and_delta(store):
    evidence = ms.assert_privacy_budget(trained(store), max_epsilon=2.0, delta=1e-5, canaries=1000)
    accounted, audited, measured, delta = evidence.quantities
    assert accounted.value < 2.0
    assert audited.interval.low < audited.budget.limit == pytest.approx(accounted.value)
    assert measured.value == pytest.approx(accounted.value, rel=0.05)
    assert delta.value == 1e-5
    assert evidence.details["audit"]["power_against_a_quarter_of_the_noise"] > 0.8


def test_an_epsilon_above_the_budget_fails_whatever_the_audit_says(store):
    with pytest.raises(ms.GateFailure, match=r"max_epsilon=1(.|\n)*PrivateTraining\(epsilon=1\)"):
        ms.assert_privacy_budget(trained(store), max_epsilon=1.0, delta=1e-5, canaries=1000)


@pytest.mark.parametrize("kind", ["no clipping", "quarter"])
def test_guesses_about_canaries_refute_a_sabotaged_optimizer(store, kind):
    evidence = ms.measure_privacy_budget(
        trained(store, optimizer=sabotaged(kind)), max_epsilon=2.0, delta=1e-5, canaries=1000
    )
    accounted, audited, measured, _ = evidence.quantities
    assert [each.verdict.name for each in (accounted, audited, measured)] == ["PASS", "FAIL", "FAIL"]
    assert "not those that are accounted for" in evidence.advice


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("the same noise", "in the difference of two steps"),
        ("one step without noise", "in one step"),
    ],
)
def test_noise_that_is_right_on_average_but_missing_or_repeated_is_found(store, kind, place):
    evidence = ms.measure_privacy_budget(
        trained(store, optimizer=sabotaged(kind)), max_epsilon=2.0, delta=1e-5, canaries=200
    )
    assert [each.verdict.name for each in evidence.quantities[:3]] == ["PASS", "PASS", "FAIL"]
    assert any(f"({place}), accounted for 2.1" in each for each in evidence.findings)


def test_rows_that_are_clipped_together_are_inconclusive(store):
    evidence = ms.measure_privacy_budget(
        trained(store, optimizer=sabotaged("rows clipped together")), max_epsilon=2.0, delta=1e-5, canaries=200
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.advice.startswith("clip the gradient of each row alone to max_grad_norm")


@pytest.mark.parametrize(
    ("scale", "canaries", "verdict"), [(3, 2000, "PASS"), (3, 100, "INCONCLUSIVE"), (0.85, 100, "INCONCLUSIVE")]
)
def test_steps_that_cannot_be_measured_are_said_and_few_guesses_do_not_pass_them(store, scale, canaries, verdict):
    from opacus.optimizers import DPOptimizer

    class Scaled(DPOptimizer):
        """Scales sums and noise alike, which spends no more."""

        def scale_grad(self):
            super().scale_grad()
            for each in self.params:
                each.grad *= scale

    evidence = ms.measure_privacy_budget(
        trained(store, optimizer=Scaled), max_epsilon=2.0, delta=1e-5, canaries=canaries
    )
    assert evidence.verdict.name == verdict
    assert "measured" in evidence.summary
    assert any("noise, clipping and sampling were not measured: " in each for each in evidence.findings)
    assert ("give more canaries" in evidence.advice) == (verdict == "INCONCLUSIVE")


def test_equal_training_rows_are_said(store):
    twice = {name: np.concatenate([array[:200]] * 2) for name, array in DATA.items()}
    evidence = ms.measure_privacy_budget(
        trained(store, data=twice, epochs=1), max_epsilon=2.0, delta=1e-5, canaries=100
    )
    assert any("up to 2 training rows are equal" in each for each in evidence.findings)


def test_full_batches_are_found(store, monkeypatch):
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    model = trained(store)
    monkeypatch.setattr(UniformWithReplacementSampler, "__iter__", lambda self: iter([list(range(self.num_samples))]))
    evidence = ms.measure_privacy_budget(model, max_epsilon=2.0, delta=1e-5, canaries=1000, epochs=2)
    assert [each.verdict.name for each in evidence.quantities[:3]] == ["PASS", "FAIL", "FAIL"]
    assert evidence.details["audit"]["measured"]["rate"] == 1.0


def test_beyond_the_ceiling_the_evidence_says_so_and_measured_noise_still_decides(store):
    options = {"max_epsilon": 20.0, "delta": 1e-5, "canaries": 300}
    honest = ms.measure_privacy_budget(trained(store, noise=0.7), **options)
    assert honest.passed
    assert any("what these canaries cannot refute" in each for each in honest.findings)
    assert honest.details["audit"]["correct_that_refute"] is None
    bad = ms.measure_privacy_budget(trained(store, noise=0.7, optimizer=sabotaged("bias without noise")), **options)
    assert [each.verdict.name for each in bad.quantities[1:3]] == ["PASS", "FAIL"]
    assert "(on bias)" in "".join(bad.findings)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
        self.head = nn.Linear(4, 3)

    def forward(self, first):
        features = self.layers(first)
        return {"scores": self.head(features), "features": features}


def test_the_audit_takes_named_inputs_several_outputs_augmentation_and_early_stopping(store):
    spec = ms.TrainSpec(
        loss="cross_entropy",
        output="scores",
        inputs={"first": "x"},
        epochs=3,
        batch_size=40,
        early_stopping=ms.EarlyStopping(patience=1, held_out=0.1),
        augmentation=lambda batch, generator: {
            **batch,
            "x": batch["x"] + 0.1 * torch.randn(batch["x"].shape, generator=generator),
        },
        privacy=ms.PrivateTraining(epsilon=1.0, delta=1e-5, max_grad_norm=0.5, accountant="rdp", noise_seed=2**70),
    )
    source = ms.ModelSource(name="heads", build=TwoHeads, fit=spec, data=DATA, example_inputs={"first": X[:2]})
    evidence = ms.measure_privacy_budget(
        ms.train(source, store=store), max_epsilon=1.0, delta=1e-5, canaries=200, epochs=1
    )
    assert evidence.passed
    assert not any("noise_seed" in each for each in evidence.findings)


def test_what_cannot_be_audited_is_one_clear_error(store):
    model = trained(store)
    options = {"max_epsilon": 2.0, "delta": 1e-5}
    with pytest.raises(UsageError, match=r"delta=0.1 is larger than 1 / 400 training rows"):
        ms.assert_privacy_budget(model, max_epsilon=2.0, delta=0.1)
    with pytest.raises(UsageError, match="max_epsilon must be a finite number above 0; got nan"):
        ms.assert_privacy_budget(model, max_epsilon=float("nan"), delta=1e-5)
    with pytest.raises(UsageError, match="canaries must be at least 100 and at most 10,000; got 5"):
        ms.assert_privacy_budget(model, canaries=5, **options)
    with pytest.raises(UsageError, match=r"must be a TrainedModel.*pass ms.train\(source\)"):
        ms.assert_privacy_budget(model.source, **options)
    with pytest.raises(UsageError, match="was trained without privacy, so that its epsilon is infinite"):
        ms.assert_privacy_budget(trained(store, privacy=None, epochs=1), **options)
    function = ms.ModelSource(
        name="f", build=lambda: nn.Linear(4, 3), fit=lambda module, data: None, data=DATA, example_inputs=X[:2]
    )
    with pytest.raises(UsageError, match="was trained by a function, whose steps are not known"):
        ms.assert_privacy_budget(ms.train(function, store=store), **options)
