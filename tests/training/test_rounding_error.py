"""Rounding of long sums is not a fault of an export; a wrong layer beside them is."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.errors import ExportError, UsageError
from pytest_modelserve.pipeline import Pipeline
from pytest_modelserve.serving import serve
from pytest_modelserve.training import export
from pytest_modelserve.training.export_checks import check_untraced_inputs
from pytest_modelserve.training.export_request import Tracing
from pytest_modelserve.training.rounding_error import rounding_errors


class MeanOfSignal(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.conv(x).mean(-1))


class Standardized(nn.Module):
    def forward(self, x):
        variance, mean = torch.var_mean(x + 3, (2, 3), keepdim=True, correction=0)
        return ((x + 3 - mean) * torch.rsqrt(variance + 1e-5)).flatten(1)[:, :5]


def pooled():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def pooled_after_relu():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def normalized(layer):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def image(size, channels=3):
    return np.random.default_rng(0).standard_normal((1, channels, size, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (pooled, image(224)),
        (pooled_after_relu, image(416)),
        (lambda: normalized(nn.InstanceNorm2d(8, affine=True)), image(256)),
        (lambda: normalized(nn.GroupNorm(2, 8)), image(224)),
        (MeanOfSignal, image(447, 1).reshape(1, 1, -1)),
        (Standardized, image(224)),
    ],
    ids=["pooling", "pooling after ReLU", "instance norm", "group norm", "mean of a signal", "var_mean"],
)
def test_long_sums_are_exported(store, make, example):
    notes = export(seeded(make), example, store=store, name="long").lineage[-1].notes
    assert "a row of zeros; a row of large values" in notes[0]


class TiedEmbedding(nn.Module):
    """The logits of 500 tokens: in some columns the terms of a product cancel almost exactly."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(500, 64)

    def forward(self, ids):
        return torch.tanh(self.embedding(ids)) @ self.embedding.weight.T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_columns_whose_terms_cancel_are_rounding(store, seed):
    torch.manual_seed(seed)
    assert export(TiedEmbedding().eval(), np.full((2, 5), 3), store=store, dynamic=("batch",))


def test_a_difference_that_cancels_by_chance_has_the_rounding_error_of_its_terms():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1000.0, -1000.0]]))
    rows = np.ones((1, 2), np.float32)
    reference = serve(layer.eval())
    error = rounding_errors(reference, {"input": rows}, reference.predict(rows))["output"]
    assert error[0, 0] == pytest.approx(2000 * np.sqrt(2) * np.finfo(np.float32).eps)


def test_tolerance_from_rounding_is_in_the_lineage(store):
    notes = export(seeded(pooled_after_relu), image(416), store=store, name="long").lineage[-1].notes
    assert any(
        note.startswith("a row of large values: the tolerance of output 'output' is ")
        and note.endswith(", from the rounding error of eager torch")
        for note in notes
    )


def test_output_that_is_only_rounding_is_refused_as_such(store):
    module = nn.Sequential(nn.Conv1d(1, 4, 5), nn.InstanceNorm1d(4), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    signal = np.random.default_rng(0).standard_normal((2, 1, 48_000)).astype(np.float32)
    with pytest.raises(
        ExportError, match=r"computed in another order, so it is largely rounding; pass rtol= and atol="
    ):
        export(seeded(lambda: module), signal, store=store)
    assert export(seeded(lambda: module), signal, rtol=0.0, atol=0.02, store=store)


def compared(candidate, module, example, **options):
    """Compare two torch modules as an export is compared with its own."""
    tracing = Tracing({"input": example}, {"input": {0: "batch"}})
    with serve(candidate) as got, serve(module) as expected:
        return check_untraced_inputs(got, expected, tracing, **options)


@pytest.mark.parametrize(
    ("name", "value"), [("eps", 1e-3), ("bias", 0.002), ("weight", 1.001)], ids=["epsilon", "bias", "weight"]
)
def test_wrong_parameter_of_a_normalization_over_a_large_map_is_refused(name, value):
    candidate, module = (seeded(lambda: normalized(nn.InstanceNorm2d(8, affine=True))) for _ in range(2))
    if name == "eps":
        candidate[1].eps = value
    else:
        nn.init.constant_(getattr(candidate[1], name), value)
    example = np.concatenate([image(128), image(128)])
    with pytest.raises(ExportError, match=r"differ from eager torch \(reference\) at batch = 2"):
        compared(candidate, module, example)


def test_longer_sums_have_larger_rounding_errors():
    def error(size):
        x = np.full((2, 1, size, size), 0.1, np.float32)
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        with serve(module) as reference:
            return float(rounding_errors(reference, {"input": x}, reference.predict({"input": x}))["output"].max())

    assert 0 < error(16) < error(64) < error(256) < 1e-3


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm([3, 8, 8]),
        nn.GroupNorm(3, 3),
        nn.InstanceNorm2d(3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.BatchNorm2d(3),
        nn.AvgPool2d(4),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
    ],
    ids=repr,
)
def test_reordered_layers_compute_what_the_layers_do(layer):
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with serve(layer.eval()) as reference:
        errors = rounding_errors(reference, {"input": x}, reference.predict({"input": x}))
    assert float(errors["output"].max()) < 1e-4


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(),
        lambda x: x.sum((1, -1)),
        lambda x: x.mean(),
        lambda x: x.mean(-2, keepdim=True),
        lambda x: x.var(1),
        lambda x: x.std((0, 2), correction=0),
        lambda x: torch.stack(torch.var_mean(x, -1)),
        lambda x: (x > 0).sum(),
        lambda x: x.sum(1, dtype=torch.float64),
    ],
)
def test_reordered_reductions_compute_what_the_reductions_do(function):
    class Reduction(nn.Module):
        def forward(self, x):
            return {"y": function(x)}

    x = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)
    with serve(Reduction().eval()) as reference:
        errors = rounding_errors(reference, {"x": x}, reference.predict({"x": x}))
    assert all(float(error.max(initial=0.0)) < 1e-4 for error in errors.values())


def test_predictor_that_is_no_torch_module_has_no_rounding_error():
    x = np.ones((2, 3), np.float32)
    with serve(lambda inputs: inputs, name="identity") as reference:
        assert rounding_errors(reference, {"x": x}, {"x": x}) == {}


class OffBy(nn.Module):
    """Adds more than rounding while it is exported."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, x):
        return x + self.offset if torch.compiler.is_exporting() else x + 0.0


ROWS = np.random.default_rng(0).uniform(1, 2, (2, 4)).astype(np.float32)


def test_given_tolerance_decides_and_is_in_the_lineage(store, tmp_path):
    with pytest.raises(ExportError, match="What to do: pass rtol= and atol= if such a difference is acceptable"):
        export(OffBy(1e-3).eval(), ROWS, store=store)
    with Pipeline(tmp_path) as pipeline:  # which passes every option on
        step = pipeline.export(OffBy(1e-3).eval(), ROWS, rtol=0.0, atol=2e-3, check_rows=("zeros",)).lineage[-1]
    assert (step.settings["rtol"], step.settings["atol"], step.settings["check_rows"]) == (0.0, 2e-3, ["zeros"])


def test_given_tolerance_can_be_tighter_than_the_default(store):
    assert export(OffBy(1e-5).eval(), ROWS, store=store)
    with pytest.raises(ExportError, match="the tolerance is rtol 1e-06, atol 0"):
        export(OffBy(1e-5).eval(), ROWS, rtol=1e-6, atol=0.0, store=store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 1e-3}, "rtol and atol require each other"),
        ({"atol": 1e-3}, "rtol and atol require each other"),
        ({"rtol": -1.0, "atol": 0.0}, "rtol must be a finite number of at least 0, got -1"),
        ({"check_rows": ("paddings",)}, "check_rows: unknown kind of row 'paddings': did you mean 'padding'?"),
        ({"check_rows": "padding"}, "check_rows must be a tuple of names; got 'padding'"),
    ],
)
def test_invalid_options_of_the_checks_are_refused(store, options, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        export(OffBy(0.0).eval(), ROWS, store=store, **options)
