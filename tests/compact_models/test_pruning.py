"""Pruning by the public function: what is removed, what fine-tuning sees, and what is refused."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.compact_models import prune

RNG = np.random.default_rng(0)
X = RNG.standard_normal((256, 6)).astype(np.float32)
Y = (X[:, 0] - X[:, 1] > 0).astype(np.int64)
DATA = {"x": X, "y": Y}
RUNS = []


def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def fit(module, data, *, epochs=20, rate=0.05):
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def break_weights(module, data):
    with torch.no_grad():
        module[0].bias.fill_(torch.nan)


def counted(module, data):
    RUNS.append(1)


def nothing(module, data):
    """Train nothing."""


SOURCE = ms.ModelSource(name="small", build=build, fit=fit, data=DATA, example_inputs=X[:2])


@pytest.fixture(scope="module")
def trained(store):
    return ms.train(SOURCE, store=store)


def accuracy(module):
    with torch.no_grad():
        return float((module(torch.from_numpy(X)).argmax(1).numpy() == Y).mean())


def test_channels_are_removed_and_fine_tuning_restores_the_accuracy(trained, store):
    pruned = prune(trained, amount=0.5, structured=True, fine_tune=fit, store=store)
    module = pruned.module()
    assert (module[0].out_features, module[2].in_features) == (4, 4)
    assert accuracy(module) > 0.95
    assert repr(pruned) == f"<PrunedModel small-pruned, seed 0, sha256 {pruned.sha256[:12]}…>"
    assert str(pruned.layers[0]) == "0: 8 channels → 4 (50% removed)"
    assert str(pruned.layers[1]) == "2: 2 channels, left whole: it writes an output of the model"


def test_train_spec_fine_tunes(trained, store):
    spec = ms.TrainSpec(loss="cross_entropy", epochs=3, learning_rate=0.02)
    for method in ("magnitude", "movement"):
        pruned = prune(trained, amount=0.5, structured=True, method=method, fine_tune=spec, store=store)
        assert accuracy(pruned.module()) > 0.9


def test_train_spec_that_diverges_names_its_step(trained, store):
    spec = ms.TrainSpec(loss="mse", epochs=9, learning_rate=1e30, optimizer="sgd")
    with pytest.raises(ms.TrainingError, match=r"training 'small-pruned': the loss is (nan|inf) in step"):
        prune(trained, amount=0.5, fine_tune=spec, data={"x": X, "y": X[:, :2]}, store=store)


def test_same_pruning_comes_from_the_store_and_another_amount_does_not(trained, store):
    RUNS.clear()
    for amount in (0.5, 0.5, 0.25):
        prune(trained, amount=amount, structured=True, fine_tune=counted, store=store)
    assert len(RUNS) == 2


def test_pruned_model_is_exported_with_its_lineage(trained, store):
    pruned = prune(trained, amount=0.5, structured=True, store=store)
    artifact = ms.export(pruned, store=store)
    assert artifact.name == "small-pruned"
    assert [step.stage for step in artifact.lineage] == ["training", "pruning", "export"]
    assert artifact.lineage[1].settings["removed"] == {"0": "8 → 4 channels"}
    assert artifact.lineage[1].settings["fine_tune"] is None
    assert artifact.lineage[1].notes == ("2: 2 channels, left whole: it writes an output of the model",)
    with ms.serve(artifact) as served, ms.serve(pruned) as module:
        np.testing.assert_allclose(*(next(iter(p.predict(X).values())) for p in (served, module)), atol=1e-5)


def test_search_takes_a_pruned_model(trained, store):
    pruned = prune(trained, amount=0.5, structured=True, store=store)

    def accurate(candidate):
        return ms.measure_accuracy(candidate, X, Y, min_value=0.1)

    found = ms.tune(trained, X[:8], gates=[accurate], objective="size", sources={"half": pruned}, store=store)
    assert found.chosen.name == "small-pruned"


def test_pruned_model_can_be_pruned_again(trained, store):
    once = prune(trained, amount=0.5, structured=True, store=store)
    twice = prune(once, amount=0.5, structured=True, store=store)
    assert twice.module()[0].out_features == 2
    assert [step.stage for step in twice.lineage] == ["training", "pruning", "pruning"]


def test_least_important_channels_go_first():
    module = build()
    with torch.no_grad():
        module[0].weight.mul_(torch.tensor([3.0, 1, 3, 1, 3, 1, 3, 1])[:, None] / module[0].weight.norm(dim=1)[:, None])
        module[2].weight.fill_(1.0)
    pruned = prune(module, amount=0.5, structured=True, example_inputs=X[:2]).module()
    torch.testing.assert_close(pruned[0].weight, module[0].weight[::2])


@pytest.mark.parametrize(("rounds", "left"), [(1, 2), (3, 2)])
def test_rounds_reach_the_same_amount(trained, store, rounds, left):
    pruned = prune(trained, amount=0.75, structured=True, rounds=rounds, fine_tune=nothing, store=store)
    assert pruned.module()[0].out_features == left


def test_multiple_of_keeps_whole_blocks(trained, store):
    pruned = prune(trained, amount=0.6, structured=True, multiple_of=4, store=store)
    assert pruned.module()[0].out_features == 4


def test_amount_by_layer_leaves_the_others_whole(trained, store):
    pruned = prune(trained, amount={"2": 0.25}, store=store)
    assert {layer.layer: (layer.after, layer.note) for layer in pruned.layers} == {"0": (48, "excluded"), "2": (12, "")}


def test_zeros_stay_zero_in_fine_tuning_and_in_the_file(trained, store):
    import onnx

    pruned = prune(trained, amount=0.75, rounds=2, fine_tune=fit, store=store)
    module = pruned.module()
    assert [int((module[at].weight == 0).sum()) for at in (0, 2)] == [36, 12]
    assert [layer.removed for layer in pruned.layers] == [0.75, 0.75]
    assert not torch.equal(module[0].weight, prune(trained, amount=0.75, store=store).module()[0].weight)
    model = onnx.load(ms.export(pruned, store=store).path)
    zeros = {tensor.name: int((onnx.numpy_helper.to_array(tensor) == 0).sum()) for tensor in model.graph.initializer}
    assert (zeros["0.weight"], zeros["2.weight"]) == (36, 12)


def test_movement_removes_what_training_moved_toward_zero(store):
    """One layer whose first half of the weights grows and whose second half shrinks, by a loss without data."""

    def grow_and_shrink(module, data):
        weight = module[0].weight
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            effective = module[0].weight
            (effective[:4].square().sum().neg() + effective[4:].square().sum()).backward()
            optimizer.step()
        assert weight is not None

    module = build()
    with torch.no_grad():
        module[0].weight[:4], module[0].weight[4:] = 0.1, 1.0  # magnitude would remove the first half
    settings = {"fine_tune": grow_and_shrink, "data": DATA, "example_inputs": X[:2], "store": store}
    masked = prune(module, amount={"0": 0.5}, method="movement", **settings).module()
    assert (masked[0].weight[:4] != 0).all()
    assert (masked[0].weight[4:] == 0).all()
    with torch.no_grad():
        module[2].weight.zero_()
    smaller = prune(module, amount=0.5, structured=True, method="movement", **settings).module()
    assert (smaller[0].weight.abs() < 0.5).all()


def test_heads_of_a_transformer_are_removed(store):
    layer = nn.TransformerEncoderLayer(8, 4, 16, 0.0, batch_first=True)
    module = nn.TransformerEncoder(layer, 1).eval()
    rows = RNG.standard_normal((2, 5, 8)).astype(np.float32)
    pruned = prune(module, amount={"*.self_attn": 0.5}, structured=True, example_inputs=rows, store=store)
    assert str(next(layer for layer in pruned.layers if not layer.note)) == (
        "layers.0.self_attn: 4 heads → 2 (50% removed)"
    )
    longer = torch.from_numpy(RNG.standard_normal((3, 9, 8)).astype(np.float32))
    assert pruned.module()(longer).shape == (3, 9, 8)


def test_frozen_layers_have_no_movement(store):
    module = build()
    module[0].weight.requires_grad_(False)
    settings = {"amount": 0.5, "method": "movement", "fine_tune": fit, "data": DATA, "example_inputs": X[:2]}
    layers = prune(module, store=store, **settings).layers
    assert [layer.note for layer in layers] == ["it is frozen: nothing moves it", ""]
    assert prune(module, structured=True, store=store, **settings).module()[0].out_features == 4


def test_frozen_tied_and_other_dtypes_survive(store):
    module = build().double()
    module[0].weight.requires_grad_(False)
    pruned = prune(module, amount=0.5, structured=True, example_inputs=X[:2].astype(np.float64), store=store).module()
    assert pruned[0].weight.dtype == torch.float64
    assert not pruned[0].weight.requires_grad
    shared = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    shared[2].weight = shared[0].weight
    layers = prune(shared, amount=0.5, example_inputs=X[:2], store=store).layers
    assert [layer.note for layer in layers] == ["its weight is shared with another layer"] * 2 + [""]


class Tied(nn.Module):
    """Writes scores of the tokens by the table that embeds them."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.out = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(self.hidden(self.table(tokens)).relu())


def test_tied_layers_are_listed_by_the_first_one(store):
    pruned = prune(Tied(), amount=0.5, structured=True, example_inputs=np.arange(10).reshape(2, 5) % 7, store=store)
    assert [(layer.layer, layer.after) for layer in pruned.layers] == [("table + hidden", 4), ("table", 7)]
    assert pruned.module().out.weight.shape == (7, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amount": 0}, "amount must be a proportion above 0 and below 1; got 0"),
        ({"amount": 1}, "amount must be a proportion above 0 and below 1; got 1"),
        ({"amount": float("nan")}, "amount must be a proportion above 0 and below 1; got nan"),
        ({"amount": {}}, "amount is empty"),
        ({"amount": {"0": 2}}, "amount['0'] must be a proportion above 0 and below 1; got 2"),
        ({"amount": 0.95, "structured": True}, "amount=0.95 would remove all 8 channels of '0': at most 0.875 keeps"),
        ({"amount": 0.99}, "amount=0.99 would remove all 48 weights of '0': at most 0.979 keeps one"),
        ({"amount": 0.05, "structured": True}, "nothing can be pruned: 0: amount and multiple_of remove less than one"),
        ({"amount": {"first": 0.5}}, "amount: unknown layer 'first'"),
        ({"exclude": "fc*"}, "exclude: unknown layer 'fc*'"),
        ({"exclude": [3]}, "exclude must be paths of layers; got [3]"),
        ({"exclude": "*"}, "nothing can be pruned: 0: excluded; 2: excluded"),
        ({"method": "magnitudes"}, "unknown method 'magnitudes': did you mean 'magnitude'?"),
        ({"method": "movement"}, "method='movement' needs fine_tune="),
        ({"data": DATA}, "data= needs fine_tune="),
        ({"rounds": 2}, "rounds= needs fine_tune="),
        ({"rounds": 0}, "rounds must be an integer of at least 1; got 0"),
        ({"multiple_of": 8}, "multiple_of= needs structured=True"),
        (
            {"fine_tune": break_weights},
            "fine-tuning 'small-pruned' with seed 0 left 8 of 8 values of '0.bias' NaN or infinite: lower the",
        ),
        ({"fine_tune": lambda module: None}, "must accept fit(module, data)"),
        ({"fine_tune": SOURCE}, "fine_tune must be ms.TrainSpec(...) or a function; got ModelSource: pass its fit"),
        ({"fine_tune": fit, "data": (X, X)}, "data must be a mapping from names to arrays; got tuple"),
        ({"structured": "channels"}, "structured must be True or False; got 'channels'"),
        ({"exclude": None}, "exclude must be paths of layers; got None"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295"),
        ({"name": "a/b"}, "model name 'a/b' is invalid"),
    ],
)
def test_bad_arguments_are_refused(trained, store, changes, message):
    with pytest.raises(ms.UsageError) as caught:
        prune(trained, **{"amount": 0.5, "store": store, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("model.pt", {}, "model must be a TrainedModel or a torch module; got str"),
        (SOURCE, {}, "model must be a TrainedModel or a torch module; got ModelSource: pass ms.train(source)"),
        (build(), {"example_inputs": None}, "example_inputs is required if model is a torch module"),
        (build(), {"fine_tune": fit}, "data is required to train a torch module"),
        (nn.Sequential(nn.ReLU()), {}, "nothing can be pruned: no layer has weights to remove"),
        (nn.Sequential(nn.LazyLinear(2)), {}, "'0.weight' of model has no values yet: call the module once"),
        (
            nn.Sequential(nn.Linear(5, 2)),
            {"structured": True},
            "Sequential fails on example_inputs (input float32[2, 6])",
        ),
        (nn.Sequential(nn.Linear(6, 2)).to("meta"), {}, "'0.weight' of model is on meta: call .cpu() first"),
    ],
)
def test_models_that_cannot_be_pruned_are_refused(store, model, changes, message):
    with pytest.raises(ms.UsageError) as caught:
        prune(model, **{"amount": 0.5, "example_inputs": X[:2], "store": store, **changes})
    assert message in str(caught.value)


def test_nan_in_the_model_is_refused(store):
    module = build()
    break_weights(module, {})
    with pytest.raises(ms.UsageError, match=r"'Sequential' has 8 of 8 values of '0.bias' NaN or infinite"):
        prune(module, amount=0.5, example_inputs=X[:2], store=store)


def test_pipeline_prunes_with_its_own_store(tmp_path):
    with ms.Pipeline(tmp_path / "cache") as pipeline:
        trained = pipeline.train(SOURCE)
        pruned = pipeline.prune(trained, amount=0.5, structured=True, fine_tune=functools.partial(fit, epochs=1))
    assert pruned.weights.is_relative_to(tmp_path / "cache")
    assert isinstance(pruned.layers, tuple)
