"""Quantization-aware training: the rounding is that of the files, and 4 bits lose less after it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.compact_models import quantization_aware
from pytest_modelserve.compact_models.quantization_aware import round_int4, round_int8

RNG = np.random.default_rng(0)
X = RNG.standard_normal((600, 40)).astype(np.float32)
Y = (np.tanh(X @ RNG.standard_normal((40, 8)) / 3) @ RNG.standard_normal((8, 10))).argmax(axis=1)
SPEC = ms.TrainSpec(loss="cross_entropy", epochs=30, learning_rate=0.01)


def build():
    return nn.Sequential(nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 10))


def break_weights(module, data):
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)


@pytest.fixture(scope="module")
def trained(store):
    data = {"x": X, "y": Y}
    return ms.train(ms.ModelSource(name="small", build=build, fit=SPEC, data=data, example_inputs=X[:2]), store=store)


def outputs(artifact):
    with ms.serve(artifact) as served:
        return next(iter(served.predict(X).values()))


def test_rounding_is_to_the_nearest_of_the_steps():
    weight = torch.tensor([[0.0, 1.27, -0.634, 0.006], [254.0, 0.9, 1.1, -3.2]])
    expected = torch.tensor([[0.0, 1.27, -0.63, 0.01], [254.0, 0.0, 2.0, -4.0]])
    torch.testing.assert_close(round_int8(weight), expected)
    row = torch.tensor([[-0.5, 1.0, 0.26, 0.04] + [0.0] * 28 + [3.0, 1.4]])
    got = round_int4(row)
    torch.testing.assert_close(got[0, :4], torch.tensor([-0.5, 1.0, 0.3, 0.0]))
    torch.testing.assert_close(got[0, 32:], torch.tensor([3.0, 1.4]))


def test_int8_file_holds_the_weights_that_were_trained(trained, store):
    aware = quantization_aware(trained, "int8-static", fine_tune=SPEC, store=store)
    quantized = ms.compress(ms.export(aware, store=store), "int8-static", calibration=X, store=store)
    assert [step.stage for step in quantized.lineage] == [
        "training", "quantization-aware training", "export", "compression",
    ]  # fmt: skip
    graph = onnx.load(quantized.path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [
        (stored[node.input[0]].astype(np.float32), stored[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].ndim == 2
    ]
    for (steps, scale), layer in zip(weights, (aware.module()[0], aware.module()[2]), strict=True):
        own = layer.weight.detach().numpy()
        held = steps * scale[:, None] if steps.shape == own.shape else (steps * scale[None]).T
        np.testing.assert_allclose(held, own, rtol=1e-5, atol=1e-7)


def test_int4_file_computes_what_was_trained(trained, store):
    aware = quantization_aware(trained, "int4-weights", fine_tune=SPEC, store=store)
    exported = ms.export(aware, store=store)
    quantized = outputs(ms.compress(exported, "int4-weights", store=store))
    np.testing.assert_allclose(quantized, outputs(exported), rtol=1e-4, atol=1e-4)


def test_four_bits_lose_less_after_training_with_them(trained, store):
    aware = quantization_aware(trained, "int4-weights", fine_tune=SPEC, store=store)
    accuracies = [
        float((outputs(ms.compress(ms.export(each, store=store), "int4-weights", store=store)).argmax(1) == Y).mean())
        for each in (trained, aware)
    ]
    assert accuracies[1] > accuracies[0] + 0.02


@pytest.mark.parametrize("recipe", ["int8-static", "int4-weights"])
def test_weights_that_were_pruned_stay_zero(trained, store, recipe):
    pruned = ms.prune(trained, amount=0.75, store=store)
    aware = quantization_aware(pruned, recipe, fine_tune=SPEC, store=store).module()
    assert [float((aware[layer].weight == 0).float().mean()) for layer in (0, 2)] == [
        pytest.approx(0.75, abs=0.1),
        pytest.approx(0.75, abs=0.1),
    ]
    removed = pruned.module()[0].weight == 0
    assert not aware[0].weight[removed].any()


def test_excluded_layers_stay_in_float(trained, store):
    aware = quantization_aware(trained, "int8-static", fine_tune=SPEC, exclude="2", store=store).module()
    torch.testing.assert_close(round_int8(aware[0].weight), aware[0].weight)
    assert not torch.allclose(round_int8(aware[2].weight), aware[2].weight, rtol=0, atol=1e-7)


def test_convolutions_and_modules_of_ones_own_are_rounded(store):
    module = nn.Sequential(
        nn.Unflatten(1, (1, 40)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(152, 10)
    )
    data = {"x": X[:64], "y": Y[:64]}
    spec = ms.TrainSpec(loss="cross_entropy", epochs=1)
    aware = quantization_aware(module, "int8-static", fine_tune=spec, data=data, example_inputs=X[:2], store=store)
    weight = aware.module()[1].weight
    torch.testing.assert_close(round_int8(weight), weight)
    assert not torch.equal(weight, module[1].weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "int8-dynamic"}, "unknown recipe 'int8-dynamic': did you mean 'int8-static'?"),
        ({"exclude": "fc"}, "exclude: unknown layer 'fc'"),
        ({"exclude": "*"}, "'small-aware' has no layer to round (Linear or Conv1d or Conv2d or Conv3d)"),
        ({"fine_tune": break_weights}, "fine-tuning 'small-aware' with seed 0 left"),
        ({"fine_tune": None}, "fine_tune must be ms.TrainSpec(...) or a function; got NoneType"),
        ({"model": nn.Linear(40, 4), "example_inputs": X[:2]}, "data is required to train a torch module"),
        ({"model": nn.Linear(40, 4)}, "example_inputs is required if model is a torch module"),
    ],
)
def test_bad_arguments_are_refused(trained, store, changes, message):
    arguments = {"model": trained, "recipe": "int8-static", "fine_tune": SPEC, "store": store, **changes}
    with pytest.raises(ms.UsageError) as caught:
        quantization_aware(arguments.pop("model"), arguments.pop("recipe"), **arguments)
    assert message in str(caught.value)
