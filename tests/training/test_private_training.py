"""Private training: the spent privacy, the same bits after a kill, and what cannot be trained privately."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import MissingDependencyError, UsageError
from pytest_modelserve.training.export_request import training_step
from pytest_modelserve.training.privacy_accounting import epsilon_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 6)).astype(np.float32)
DATA = {"x": X, "y": X[:, :3].argmax(1)}
# The accountant that needs no numerical integration, as its figures do not matter here.
PRIVACY = ms.PrivateTraining(noise_multiplier=1.0, delta=1e-4, max_grad_norm=1.0, accountant="rdp")
SPEC = ms.TrainSpec(loss="cross_entropy", epochs=3, batch_size=30, learning_rate=0.02, privacy=PRIVACY)


def net(*layers):
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.ReLU(), nn.Linear(8, 3))


def source(spec=SPEC, build=net):
    return ms.ModelSource(name="small", build=build, fit=spec, data=DATA, example_inputs=X[:2])


def private(**changes):
    """Return the spec with changed settings of its privacy."""
    return dataclasses.replace(SPEC, privacy=dataclasses.replace(PRIVACY, **changes))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_the_metrics_have_epsilon_delta_and_the_accounted_steps(store):
    metrics = ms.train(source(), store=store).metrics
    (steps,) = metrics.privacy.history
    assert (steps.noise_multiplier, steps.sample_rate, steps.steps) == (1.0, 0.1, 30)
    assert (metrics.privacy.delta, metrics.privacy.rows) == (1e-4, 300)
    assert 4 < metrics.privacy.epsilon < 4.1
    assert "at delta 0.0001" in str(metrics)


def test_a_rerun_gives_the_same_bits_and_a_secret_seed_others(store, tmp_path):
    digest = ms.train(source(), store=store).sha256
    assert ms.train(source(), store=Store(tmp_path / "other")).sha256 == digest
    secret = ms.train(source(private(noise_seed=2**100 + 1)), store=store)
    assert secret.sha256 != digest
    assert secret.metrics.privacy.is_seed_secret
    assert str(2**100 + 1) not in str(secret.source.fit.describe())


class StoppedError(Exception):
    pass


class Stopping(nn.Module):
    """Raises in a forward pass in the middle of the training."""

    calls = None

    def __init__(self):
        super().__init__()
        self.layers = net(nn.Dropout(0.2))

    def forward(self, x):
        if torch.is_grad_enabled() and Stopping.calls is not None:
            Stopping.calls += 1
            if Stopping.calls == 14:
                raise StoppedError
        return self.layers(x)


def test_a_resumed_training_ends_with_the_same_bits_and_accounts_for_all_steps(store, tmp_path):
    through = ms.train(source(build=Stopping), store=store)
    Stopping.calls, path = 0, tmp_path / "training.ckpt"
    with pytest.raises(StoppedError):
        ms.train(source(build=Stopping), store=Store(tmp_path / "other"), checkpoint=path, checkpoint_every_s=0)
    assert ms.read_checkpoint(path).state["privacy"]["steps"] == 13
    Stopping.calls = None
    resumed = ms.train(source(build=Stopping), store=Store(tmp_path / "other"), checkpoint=path, checkpoint_every_s=0)
    assert resumed.sha256 == through.sha256
    assert resumed.metrics.privacy == through.metrics.privacy


def test_noise_follows_from_epsilon(store):
    spent = ms.train(source(private(epsilon=1.5, noise_multiplier=None)), store=store).metrics.privacy
    assert 1.49 < spent.epsilon <= 1.5
    assert spent.epsilon_at(1e-6) > 1.5


@pytest.mark.parametrize(("accountant", "evaluations"), [("rdp", 7), ("prv", 6)])
def test_noise_for_epsilon_needs_few_evaluations_of_the_accountant(monkeypatch, accountant, evaluations):
    asked = []

    def counted(history, delta, accountant):
        asked.append(history)
        return epsilon_of(history, delta, accountant)

    monkeypatch.setattr("pytest_modelserve.training.privacy_accounting.epsilon_of", counted)
    settings = ms.PrivateTraining(epsilon=2.0, delta=1e-5, max_grad_norm=1.0, accountant=accountant)
    plan = settings.plan(1000, 20, 10)
    assert 1.99 < epsilon_of([plan], 1e-5, accountant) <= 2.0
    assert len(asked) <= evaluations


def test_a_delta_too_small_for_the_prv_accountant_has_the_bound_of_rdp(store):
    spent = ms.train(source(private()), store=store).metrics.privacy
    steps = {"history": spent.history, "delta": 1e-15}
    assert epsilon_of(accountant="prv", **steps) == epsilon_of(accountant="rdp", **steps)


def test_epochs_beyond_epsilon_are_refused_before_the_training(store):
    with pytest.raises(UsageError, match=r"epsilon=2 would be spent before the end: 3 epochs.*leave noise_multiplier"):
        ms.train(source(private(epsilon=2)), store=store)
    with pytest.raises(UsageError, match="train at most 2 epochs"):
        ms.train(source(private(epsilon=3.6)), store=store)


def test_a_budget_spent_by_an_earlier_training_is_refused_and_a_part_of_it_counted(store):
    spent = ms.train(source(), store=store).metrics.privacy
    with pytest.raises(UsageError, match=r"epsilon=3 is spent already: earlier trainings on these rows spent 4.05"):
        ms.train(source(private(epsilon=3, spent=spent)), store=store)
    again = ms.train(source(private(spent=spent)), store=store).metrics.privacy
    assert len(again.history) == 2
    assert again.epsilon > spent.epsilon


def test_early_stopping_counts_all_planned_steps(store):
    stopping = ms.EarlyStopping(patience=1, held_out=0.2, min_improvement=10.0)
    metrics = ms.train(source(dataclasses.replace(SPEC, early_stopping=stopping)), store=store).metrics
    assert metrics.epochs == 2
    assert metrics.privacy.rows == 240
    assert metrics.privacy.history[0].steps == 3 * 8


def test_the_lineage_has_epsilon_and_no_losses_of_training_rows(store):
    training = training_step(ms.train(source(), store=store))  # the first step of an export's lineage
    assert training.settings["metrics"]["privacy"]["epsilon"] > 0
    assert training.settings["spec"]["privacy"]["delta"] == 1e-4
    assert "losses" not in training.settings["metrics"]


def test_a_step_without_any_row_adds_noise_only(store):
    trained = ms.train(source(dataclasses.replace(SPEC, batch_size=1, epochs=1)), store=store)
    assert trained.metrics.privacy.history[0].steps == 300


def test_layers_that_cannot_be_private_are_named_with_a_replacement(store):
    with pytest.raises(UsageError, match=r"BatchNorm1d '1': use GroupNorm\(8, 8\) or LayerNorm"):
        ms.train(source(build=lambda: net(nn.BatchNorm1d(8))), store=store)
    buffers = lambda: net(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))  # noqa: E731
    with pytest.raises(UsageError, match="cannot compute the gradients of rows of this module: This layer has buffers"):
        ms.train(source(build=buffers), store=store)
    attention = lambda: net(nn.MultiheadAttention(8, 2), nn.LSTM(8, 8))  # noqa: E731
    with pytest.raises(UsageError, match=r"2 layers.*DPMultiheadAttention.*LSTM '2': use opacus.layers.DPLSTM"):
        ms.train(source(build=attention), store=store)


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x):
        self.total += x.detach().sum(0)
        return x


class Folding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x.reshape(-1, 3)).reshape(len(x), 4)[:, :3]


def test_rows_that_influence_each_other_are_refused(store):
    with pytest.raises(UsageError, match="a row's gradient depends on other rows"):
        ms.train(source(build=lambda: net(Mixing())), store=store)
    with pytest.raises(UsageError, match=r"the buffer '1.total' changes in a forward pass"):
        ms.train(source(build=lambda: net(Counting())), store=store)
    with pytest.raises(UsageError, match=r"'layer.weight' has .* gradients for .* rows"):
        ms.train(source(build=Folding), store=store)
    mixup = lambda batch, generator: {**batch, "x": batch["x"] + batch["x"].flip(0)}  # noqa: E731
    with pytest.raises(UsageError, match="augmentation makes other values of 'x' of a row if another row"):
        ms.train(source(dataclasses.replace(SPEC, augmentation=mixup)), store=store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": None, "noise_multiplier": None}, "epsilon is missing"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number above 0; got nan"),
        ({"delta": 0}, "delta must be a number between 0 and 1"),
        ({"max_grad_norm": -1}, "max_grad_norm must be a finite number above 0; got -1"),
        ({"accountant": "rpd"}, "did you mean 'rdp'"),
        ({"noise_seed": 7}, r"noise_seed must be a secret integer of at least 64 bits.*secrets.randbits"),
        ({"spent": 1.0}, "spent must be the metrics.privacy"),
        ({"optimizer": "sgd"}, "optimizer must be a class or a function"),
    ],
)
def test_invalid_settings_are_one_clear_error(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(PRIVACY, **changes)


def test_a_delta_above_one_over_the_rows_is_refused():
    with pytest.raises(UsageError, match=r"delta=0.01 is larger than 1 / 300 training rows"):
        source(private(delta=0.01))


def test_what_does_not_combine_with_privacy_is_refused(store):
    with pytest.raises(UsageError, match="max_grad_norm of a private training is that of a row"):
        dataclasses.replace(SPEC, max_grad_norm=1.0)
    with pytest.raises(UsageError, match=r"processes=2 cannot train with privacy="):
        ms.train(source(), store=store, processes=2)
    with pytest.raises(UsageError, match="fine_tune: a TrainSpec with privacy= cannot fine-tune here"):
        ms.prune(net(), amount=0.5, structured=True, data=DATA, example_inputs=X[:2], fine_tune=SPEC, store=store)


def test_missing_opacus_is_named_with_its_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingDependencyError, match=r"pytest-modelserve\[privacy\]"):
        ms.train(source(), store=store)
