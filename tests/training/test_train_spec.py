"""Training by a TrainSpec: what the settings do, and which are refused."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import InputError, TrainingError, UsageError
from pytest_modelserve.training.loss import FunctionLoss, make_loss
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.training_loop import run_training

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype(np.float32)
CLASSES = X[:, :3].argmax(1)
DATA = {"x": X, "y": CLASSES}


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def spec(**changes):
    return ms.TrainSpec(**{"loss": "cross_entropy", "epochs": 3, "batch_size": 20, **changes})


def source(settings, data=DATA, build=build):
    return ms.ModelSource(name="small", build=build, fit=settings, data=data, example_inputs=X[:2])


def fit(settings, data=DATA, build=build, **arguments):
    """Return the trained module and its metrics, without a store."""
    with reproducible(0):
        module = build()
        metrics = run_training(module, settings, data, seed=0, name="small", **arguments)
    return module, metrics


def weights(module):
    return torch.cat([each.detach().reshape(-1) for each in module.parameters()])


def test_loss_falls_and_the_metrics_travel_to_the_lineage_of_the_export(tmp_path):
    store = Store(tmp_path)
    trained = ms.train(source(spec(epochs=20, learning_rate=0.02)), store=store)
    metrics = trained.metrics
    assert metrics.losses[-1] < 0.5 * metrics.losses[0]
    assert (metrics.epochs, metrics.best_epoch, metrics.held_out_losses, metrics.processes) == (20, 20, (), 1)
    assert str(metrics).startswith("20 epochs in ")
    (step, _) = ms.export(trained, store=store).lineage
    assert step.settings["metrics"]["losses"] == list(metrics.losses)
    assert step.settings["spec"]["learning_rate"] == 0.02
    assert "seconds" not in step.settings["metrics"]


def test_one_step_is_the_step_of_torch():
    module, metrics = fit(spec(epochs=1, batch_size=60, optimizer="sgd", learning_rate=0.1))
    with reproducible(0):
        expected = build()
    loss = functional.cross_entropy(expected(torch.from_numpy(X)), torch.from_numpy(CLASSES))
    loss.backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    torch.testing.assert_close(weights(module), weights(expected))
    assert metrics.losses == pytest.approx((float(loss.detach()),))


def test_rows_are_divided_evenly_into_steps():
    sizes = []

    def count(module, batch):
        sizes.append(len(batch["x"]))
        return functional.cross_entropy(module(batch["x"]), batch["y"])

    fit(spec(epochs=1, batch_size=59), loss=FunctionLoss(count))  # no step of one row, which batch norm refuses
    assert sizes == [30, 30]


OUTPUTS = torch.from_numpy(RNG.standard_normal((6, 3)).astype(np.float32))
TARGETS = torch.tensor([0, 1, 2, 2, -100, 1])
BINARY = torch.tensor([0, 1, 1, 0, 1, 1])
WEIGHTS = [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("settings", "outputs", "labels", "expected"),
    [
        ({"loss": "cross_entropy"}, OUTPUTS, TARGETS, functional.cross_entropy(OUTPUTS, TARGETS)),
        (
            {"loss": "cross_entropy", "class_weights": WEIGHTS, "label_smoothing": 0.2},
            OUTPUTS,
            TARGETS,
            functional.cross_entropy(OUTPUTS, TARGETS, torch.tensor(WEIGHTS), label_smoothing=0.2),
        ),
        (
            {"loss": "cross_entropy"},
            OUTPUTS,
            OUTPUTS.softmax(1),
            functional.cross_entropy(OUTPUTS, OUTPUTS.softmax(1)),
        ),
        (
            {"loss": "nll", "class_weights": WEIGHTS},
            OUTPUTS.log_softmax(1),
            TARGETS,
            functional.nll_loss(OUTPUTS.log_softmax(1), TARGETS, torch.tensor(WEIGHTS)),
        ),
        (
            {"loss": "binary_cross_entropy"},
            OUTPUTS[:, :1],
            BINARY,
            functional.binary_cross_entropy_with_logits(OUTPUTS[:, 0], BINARY.float()),
        ),
        ({"loss": "mse"}, OUTPUTS[:, :1], BINARY, functional.mse_loss(OUTPUTS[:, 0], BINARY.float())),
        ({"loss": "mae"}, OUTPUTS, OUTPUTS.double() + 1, torch.tensor(1.0)),
        ({"loss": "huber"}, OUTPUTS, OUTPUTS + 2, torch.tensor(1.5)),
        ({"loss": "poisson_nll"}, OUTPUTS, OUTPUTS.exp(), functional.poisson_nll_loss(OUTPUTS, OUTPUTS.exp())),
    ],
    ids=["classes", "weighted", "soft", "nll", "binary", "mse", "mae", "huber", "poisson"],
)
def test_named_loss_is_the_mean_of_torch_and_parts_of_a_batch_add_up(settings, outputs, labels, expected):
    loss = make_loss(spec(**settings))
    batch = {"x": outputs, "y": labels}
    mean = loss.total(nn.Identity(), batch) / loss.weight(batch)
    assert float(mean) == pytest.approx(float(expected), rel=1e-6)
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 4), slice(4, 6))]
    total = sum(float(loss.total(nn.Identity(), part)) for part in parts)
    assert total / sum(map(loss.weight, parts)) == pytest.approx(float(expected), rel=1e-6)


def test_weights_of_binary_classes_are_those_of_their_rows():
    loss = make_loss(spec(loss="binary_cross_entropy", class_weights=[1, 3]))
    batch = {"x": OUTPUTS[:, 0], "y": BINARY}
    losses = functional.binary_cross_entropy_with_logits(OUTPUTS[:, 0], BINARY.float(), reduction="none")
    row_weights = 1.0 + 2.0 * BINARY
    expected = float((losses * row_weights).sum() / row_weights.sum())
    assert float(loss.total(nn.Identity(), batch)) / loss.weight(batch) == pytest.approx(expected)


def loss_of_two(outputs, labels):
    first, second = labels
    return functional.cross_entropy(outputs["logits"], first) + outputs["extra"].sub(second).square().mean()


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, left, right):
        outputs = self.inner(left + right)
        return {"logits": outputs[:, :3], "extra": outputs[:, 3]}


TWO = {"inputs": {"right": "x", "left": "z"}, "loss": loss_of_two, "labels": ["y", "z0"]}
TWO_DATA = {**DATA, "z": X, "z0": X[:, 0]}


def test_loss_function_gets_all_outputs_and_labels_and_a_named_loss_one_of_them():
    assert fit(spec(**TWO), TWO_DATA, TwoOutputs)[1].losses
    named = spec(inputs=TWO["inputs"], output="logits")
    assert fit(named, TWO_DATA, TwoOutputs)[1].losses
    with pytest.raises(
        UsageError, match="the module returns 'logits', 'extra': name the one that loss='cross_entropy'"
    ):
        fit(spec(inputs=TWO["inputs"]), TWO_DATA, TwoOutputs)
    with pytest.raises(UsageError, match="unknown output 'logit': did you mean 'logits'"):
        fit(spec(inputs=TWO["inputs"], output="logit"), TWO_DATA, TwoOutputs)


def rates(schedule, steps=20):
    settings = spec(schedule=schedule, learning_rate=1.0, optimizer="sgd")
    optimizer = settings.make_optimizer(build())
    scheduler = settings.make_schedule(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_have_their_forms():
    assert rates("constant") == [1.0] * 20
    assert rates("linear") == pytest.approx([1 - step / 20 for step in range(20)])
    assert rates("cosine") == pytest.approx([(1 + np.cos(np.pi * step / 20)) / 2 for step in range(20)])
    assert rates("warmup-linear")[:3] == pytest.approx([0.5, 1.0, 18 / 19])
    assert rates(lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, steps // 2, 0.5))[9:11] == [1, 0.5]


def test_optimizer_may_be_a_function_whose_rate_the_spec_replaces():
    maker = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    (group,) = spec(optimizer=maker).make_optimizer(build()).param_groups
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)
    (group,) = spec(optimizer=maker, learning_rate=0.1).make_optimizer(build()).param_groups
    assert group["lr"] == 0.1
    assert spec(optimizer=maker).describe()["optimizer"] == "SGD(lr=0.5, momentum=0.9)"


def test_long_gradients_are_scaled_down():
    norms = []

    def recorded(parameters):
        optimizer = torch.optim.Adam(parameters)
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(float(torch.cat([each.grad.reshape(-1) for each in parameters]).norm()))
        )
        return optimizer

    fit(spec(epochs=1, optimizer=recorded))
    free = max(norms)
    norms.clear()
    fit(spec(epochs=1, optimizer=recorded, max_grad_norm=free / 10))
    assert max(norms) == pytest.approx(free / 10, rel=1e-3)


def test_early_stopping_keeps_the_weights_of_the_best_epoch():
    data = {**DATA, "held": np.arange(60) < 20}
    stopping = ms.EarlyStopping(patience=3, held_out="held")
    module, metrics = fit(spec(epochs=200, learning_rate=0.1, early_stopping=stopping), data)
    assert metrics.epochs == metrics.best_epoch + 3 < 200
    assert min(metrics.held_out_losses) == metrics.held_out_losses[metrics.best_epoch - 1]
    loss = functional.cross_entropy(module(torch.from_numpy(X[:20])), torch.from_numpy(CLASSES[:20]))
    assert float(loss.detach()) == pytest.approx(min(metrics.held_out_losses), rel=1e-6)


def test_held_out_rows_are_not_trained_on():
    seen = set()

    def remember(module, batch):
        if module.training:
            seen.update(batch["x"][:, 0].tolist())
        return functional.cross_entropy(module(batch["x"]), batch["y"])

    fit(spec(early_stopping=ms.EarlyStopping(patience=2, held_out=0.25)), loss=FunctionLoss(remember))
    assert len(seen) == 45


def shift(batch, generator):
    return {**batch, "x": batch["x"] + torch.rand(1, generator=generator)}


def test_augmentation_changes_the_training_and_is_seeded():
    plain = weights(fit(spec())[0])
    first, second = (weights(fit(spec(augmentation=shift))[0]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)


def test_data_in_the_other_byte_order_train_the_same():
    swapped = {"x": X.astype(">f4"), "y": CLASSES.astype(">i8")}
    assert torch.equal(weights(fit(spec(), swapped)[0]), weights(fit(spec())[0]))


def test_fine_tuning_starts_from_the_weights_that_the_module_has():
    module, metrics = fit(spec(epochs=30, learning_rate=0.02))
    _, again = fit(spec(epochs=1), build=lambda: module)
    assert again.losses[0] < 1.1 * metrics.losses[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "crossentropy"}, "unknown loss 'crossentropy': did you mean 'cross_entropy'? Known: "),
        ({"loss": None}, "unknown loss None: known: "),
        (
            {"loss": nn.CrossEntropyLoss},
            "loss must be a function; got the class CrossEntropyLoss: pass CrossEntropyLoss()",
        ),
        (
            {"loss": nn.MSELoss(reduction="sum")},
            "loss must return the mean over the rows; got one with reduction='sum'",
        ),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)},
            "optimizer must be one of 'adam', 'adamw', 'sgd', 'sgd-momentum', 'rmsprop', or a function; got SGD",
        ),
        ({"optimizer": "adamx"}, "unknown optimizer 'adamx': did you mean 'adam'? Known: "),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'? Known: "),
        ({"device": "gpu"}, "device must be 'cpu' or 'cuda'; got 'gpu'"),
        ({"epochs": 0}, "epochs must be an integer of at least 1; got 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1; got 1.5"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1; got -1"),
        ({"learning_rate": -0.1}, "learning_rate must be a finite number above 0; got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0; got nan"),
        ({"max_grad_norm": 0}, "max_grad_norm must be a finite number above 0; got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be a finite number from 0 to less than 1; got 1.0"),
        ({"loss": "mse", "label_smoothing": 0.1}, "label_smoothing needs loss='cross_entropy'; got 'mse'"),
        ({"loss": "mse", "class_weights": [1, 2]}, "class_weights needs a loss of classes (cross_entropy, nll, "),
        ({"class_weights": [1, -2]}, "class_weights must be finite numbers of at least 0, one for each class; got [1"),
        (
            {"loss": "binary_cross_entropy", "class_weights": [1, 2, 3]},
            "class_weights of binary_cross_entropy are two, of label 0 and of label 1; got 3",
        ),
        ({"early_stopping": 5}, "early_stopping must be ms.EarlyStopping(...); got int"),
        ({"augmentation": "flip"}, "augmentation must be a function; got str"),
        ({"labels": None}, "labels of loss='cross_entropy' must be one name of the data; got None"),
        ({"inputs": 3}, "inputs must be names of arrays of the data; got 3"),
        ({"inputs": []}, "inputs must name at least one array of the data; got none"),
        ({"loss": lambda outputs: outputs}, "loss must accept loss(outputs, labels): too many positional arguments"),
        ({"schedule": lambda optimizer: None}, "schedule must accept schedule(optimizer, steps): too many"),
        ({"augmentation": lambda batch: batch}, "augmentation must accept augmentation(batch, generator): too many"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        spec(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, "patience must be an integer of at least 1; got 0"),
        (
            {"patience": 1, "held_out": 1.0},
            "held_out must be a finite number between 0 and 1, or the name of a boolean ",
        ),
        ({"patience": 1, "min_improvement": -1}, "min_improvement must be a finite number of at least 0; got -1"),
    ],
)
def test_early_stopping_out_of_range_is_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        ms.EarlyStopping(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, {"x": X, "labels": CLASSES}, "labels: unknown name in the data 'y': known: 'x', 'labels'"),
        ({"inputs": "X"}, DATA, "inputs: unknown name in the data 'X': known: 'x', 'y'"),
        ({}, {"x": X, "y": CLASSES[:50]}, "data: 'y' has 50 rows, 'x' has 60: a TrainSpec needs the same rows"),
        (
            {},
            {"x": X, "y": CLASSES.astype(str)},
            "data: 'y' has dtype <U21, which torch cannot take: use integer codes",
        ),
        (
            {"early_stopping": ms.EarlyStopping(patience=1, held_out=0.001)},
            DATA,
            "held_out=0.001 leaves 60 of 60 rows to train on and 0 held out: both need at least one",
        ),
        (
            {"early_stopping": ms.EarlyStopping(patience=1, held_out="y")},
            DATA,
            "held_out: 'y' must be a boolean array (rows,); got int64[60]",
        ),
        (
            {},
            {"x": X, "y": np.full(60, -100)},
            "labels: 'y' is -100 in all 60 rows, which marks labels to leave out: give at least one",
        ),
        (
            {"early_stopping": ms.EarlyStopping(patience=1, held_out="h")},
            {"x": X, "y": np.where(np.arange(60) < 9, -100, CLASSES), "h": np.arange(60) < 9},
            "labels: 'y' is -100 in all 9 held-out rows, which marks",
        ),
    ],
)
def test_data_that_do_not_suit_the_settings_are_refused_by_the_source(settings, data, message):
    with pytest.raises(InputError) as caught:
        source(spec(**settings), data)
    assert str(caught.value).startswith(message)


def build_flat():
    return nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))


@pytest.mark.parametrize(
    ("settings", "labels", "build", "error", "message"),
    [
        ({}, CLASSES + 1, build, InputError, "labels 'y' of loss='cross_entropy' must be classes from 0 to 2, as the mod"),
        ({}, CLASSES - 2, build, InputError, "labels 'y' of loss='cross_entropy' must be classes from 0 to 2, as the mod"),
        ({}, CLASSES / 2, build, InputError, "labels 'y' do not suit loss='cross_entropy': got float64[20], expected int"),
        ({}, np.stack([CLASSES] * 2, 1), build, InputError, "labels 'y' do not suit loss='cross_entropy': got int64[20, 2]"),
        ({}, np.eye(3, dtype=int)[CLASSES], build, InputError, "labels 'y' do not suit loss='cross_entropy': got int64[20, "
         "3], expected classes [20], such as labels.argmax(axis=1),"),
        ({}, np.eye(3)[CLASSES] - 0.5, build, InputError, "labels 'y' of loss='cross_entropy' must be probabilities"),
        ({}, np.eye(3)[CLASSES] * 2, build, InputError, "labels 'y' of loss='cross_entropy' must be probabilities"),
        ({}, CLASSES, build_flat, UsageError, "loss='cross_entropy' needs outputs (rows, classes, ...); the module returns"),
        ({"loss": "nll"}, X[:, :3], build, InputError, "labels 'y' do not suit loss='nll': got float32[20, 3], expected int"),
        ({"loss": "mse"}, CLASSES, build, InputError, "labels 'y' do not suit loss='mse': got int64[20], expected [20, 3]"),
        ({"loss": "binary_cross_entropy"}, CLASSES, build_flat, InputError, "labels 'y' of loss='binary_cross_entropy' must"),
        ({"class_weights": [1, 2]}, CLASSES % 2, build, UsageError, "class_weights must have one weight for each of the mo"),
        ({"class_weights": [1, 2]}, CLASSES, build, InputError, "labels 'y' of loss='cross_entropy' must be classes from 0"),
        ({"class_weights": [1, 0, 0]}, CLASSES * 0 + 1, build, InputError, "training 'small': no row of step 1 of 9"),
    ],
)  # fmt: skip
def test_labels_that_do_not_suit_the_loss_are_refused(settings, labels, build, error, message):
    with pytest.raises(error) as caught:
        fit(spec(**settings), {"x": X, "y": labels}, build)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss": lambda outputs, labels: outputs},
            "the loss must be a tensor of one value, the mean over the rows; got s",
        ),
        (
            {"loss": lambda outputs, labels: torch.ones(())},
            "training 'small': the loss depends on no parameter that requires",
        ),
        ({"optimizer": lambda parameters: None}, "optimizer must return a torch optimizer; got NoneType"),
        (
            {"optimizer": lambda parameters: torch.optim.SGD(build().parameters())},
            "optimizer must train the parameters that it gets; it has none of them",
        ),
        (
            {"augmentation": lambda batch, generator: {name: each.numpy() for name, each in batch.items()}},
            "augmentation must return a mapping of tensors with the names and numbers of rows that it got",
        ),
        ({"schedule": lambda optimizer, steps: 0.1}, "schedule must return a torch scheduler; got float"),
        (
            {"optimizer": torch.optim.LBFGS},
            "optimizer: step() of LBFGS needs 'closure', which a TrainSpec does not have",
        ),
        (
            {"schedule": lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)},
            "schedule: step() of ReduceLROnPlateau needs 'metrics', which a TrainSpec does not have",
        ),
        (
            {"augmentation": lambda batch, generator: batch["x"]},
            "augmentation must return a mapping of tensors with the n",
        ),
        (
            {"augmentation": lambda batch, generator: {"x": batch["x"]}},
            "augmentation must return a mapping of tensors wit",
        ),
    ],
)
def test_functions_that_return_something_else_are_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        fit(spec(**settings))
    assert str(caught.value).startswith(message)


def test_inputs_of_another_dtype_than_the_module_are_refused_by_name():
    with pytest.raises(
        InputError, match=r"the module cannot take inputs 'x' of dtype float64, as .* float32: .*astype"
    ):
        fit(spec(), {"x": X.astype(np.float64), "y": CLASSES})


def test_inputs_of_another_shape_than_the_module_takes_are_refused_by_name():
    with pytest.raises(
        InputError, match=r"the module fails on inputs 'x' float32\[20, 2\]: RuntimeError: mat1 and mat2"
    ):
        fit(spec(), {"x": X[:, :2], "y": CLASSES})


def test_parameters_without_a_shape_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'weight' of 'small' has no shape yet, and a TrainSpec needs"):
        ms.train(source(spec(), build=lambda: nn.LazyLinear(3)), store=Store(tmp_path))


def test_label_156_of_8_bits_is_not_the_ignored_one():
    with pytest.raises(InputError, match="labels 'y' of loss='cross_entropy' must be classes from 0 to 2"):
        fit(spec(), {"x": X, "y": np.full(60, 156, np.uint8)})


def test_module_without_anything_to_train_is_refused():
    with pytest.raises(UsageError, match="Identity has no parameter that requires a gradient: nothing to train"):
        fit(spec(), build=nn.Identity)


def test_nan_loss_without_a_checkpoint_names_the_step():
    data = {"x": np.where(np.arange(60)[:, None] == 7, np.float32(np.nan), X), "y": CLASSES}
    with pytest.raises(TrainingError) as caught:
        fit(spec(), data)
    assert "training 'small': the loss is nan in step " in str(caught.value)
    assert " of 9 (epoch 1 of 3): lower the learning rate, " in str(caught.value)
    assert str(caught.value).endswith("There is no checkpoint yet")
