"""Silent failures of torch's exporter, planted: each is refused, or exported right."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.errors import ExportError
from pytest_modelserve.training import export

RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 9, (2, 5))


class Padded(nn.Module):
    """Token 0 is padding, as everywhere."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed = nn.Embedding(9, 8)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.last = nn.Linear(8, 2)

    def forward(self, ids):
        hidden = self.encoder(self.embed(ids), src_key_padding_mask=ids == 0)
        return {"scores": self.last(hidden[:, 0])}


class MeanOfTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)

    def forward(self, ids):
        kept = (ids != 0)[..., None]
        return {"scores": (self.embed(ids) * kept).sum(1) / kept.sum(1)}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=True)


class UnitLength(nn.Module):
    """Rows divided by their length, which an epsilon keeps from 0."""

    def __init__(self, add_epsilon):
        super().__init__()
        self.register_buffer("epsilon", torch.tensor(1e-12))
        self.add_epsilon = add_epsilon

    def forward(self, x):
        return x / torch.sqrt(self.add_epsilon((x * x).sum(-1, keepdim=True), self.epsilon))


FEATURES = RNG.standard_normal((2, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("add_epsilon", "constant", "operator"),
    [
        (lambda squares, _: squares + 1e-12, "`+ 1e-12`", "aten.add.Tensor"),
        (lambda squares, _: 1e-9 + squares, "`+ 1e-09`", "aten.add.Tensor"),
        (lambda squares, _: squares - -1e-12, "`- -1e-12`", "aten.sub.Tensor"),
        (lambda squares, epsilon: squares + epsilon, "`+ 1e-12`", "aten.add.Tensor"),
    ],
    ids=["constant", "constant first", "subtracted", "buffer"],
)
def test_epsilon_that_the_exporter_drops_is_named_with_its_source_line(store, add_epsilon, constant, operator):
    with pytest.raises(ExportError) as caught:
        export(UnitLength(add_epsilon).eval(), FEATURES, store=store)
    message = str(caught.value)
    assert "at a row of zeros: output 'output': NaN in only one of the two" in message
    assert f"The likely cause: the exporter dropped {constant} (node '" in message
    assert f"', {operator}, {__file__}:" in message
    assert message.endswith("or a limit such as x.clamp_min(1e-12), which is kept")


@pytest.mark.parametrize(
    "add_epsilon",
    [lambda squares, _: squares.clamp_min(1e-12), lambda squares, _: squares + 2e-8],
    ids=["limit", "larger constant"],
)
def test_what_the_message_advises_keeps_the_epsilon(store, add_epsilon):
    step = export(UnitLength(add_epsilon).eval(), FEATURES, store=store).lineage[-1]
    assert not any("dropped" in note for note in step.notes)


@pytest.mark.parametrize("opset", [18, 23])
def test_epsilon_that_changes_no_output_is_a_note(store, opset):
    class Shifted(nn.Module):
        def forward(self, x):
            return (x + 1e-9) * 2

    step = export(Shifted().eval(), FEATURES, store=store, opset=opset).lineage[-1]
    assert step.notes[1].startswith("the exporter dropped `+ 1e-09` (node '")
    assert step.notes[1].endswith("; the outputs agree without it on the checked rows")


def test_epsilon_of_a_normalization_is_not_dropped(store):
    module = nn.Sequential(nn.LayerNorm(6, eps=1e-12), nn.Linear(6, 2))
    assert len(export(module.eval(), FEATURES, store=store).lineage[-1].notes) == 1


def test_padding_row_that_eager_torch_hides_and_the_export_does_not_is_refused(store):
    # The fast path of nn.TransformerEncoder skips padding and fills in zeros; the graph computes softmax over nothing.
    torch.manual_seed(0)
    with pytest.raises(ExportError) as caught:
        export(Padded().eval(), IDS, dynamic=("batch", "time"), store=store)
    message = str(caught.value)
    assert "at an all-padding row (integers 0): output 'scores': NaN in only one of the two, at 2 of 4" in message
    assert "build nn.TransformerEncoder with enable_nested_tensor=False" in message


class MaskedAttention(nn.Module):
    """Attention by torch's own function, which gives zeros for a row without any token; the graph gives NaN."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, ids):
        tokens = self.embed(ids)[:, None]
        mask = (ids != 0)[:, None, None, :]
        hidden = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)
        return {"scores": self.last(hidden[:, 0].mean(1))}


def test_attention_over_masked_tokens_is_exported_without_the_padding_check(store, check_outputs):
    torch.manual_seed(0)
    module = MaskedAttention().eval()
    with pytest.raises(ExportError, match=r"at an all-padding row \(integers 0\).*check_rows=\('zeros', 'extremes'\)"):
        export(module, IDS, store=store)
    artifact = export(module, IDS, check_rows=("extremes",), store=store)
    assert artifact.lineage[-1].settings["check_rows"] == ["extremes"]
    assert "edge-case rows not checked (check_rows): padding, zeros" in artifact.lineage[-1].notes
    check_outputs(artifact, module, {"ids": IDS})


def test_padding_row_that_is_nan_on_both_sides_is_a_note(store):
    torch.manual_seed(0)
    artifact = export(MeanOfTokens().eval(), IDS, dynamic=("batch", "time"), store=store)
    assert artifact.lineage[-1].notes[1:] == (
        "an all-padding row (integers 0): output 'scores' is NaN at 8 of 16 elements, in eager torch as well",
    )


def test_attention_with_weights_keeps_the_sequence_free(store, check_outputs):
    torch.manual_seed(0)
    module = Attention().eval()
    x = RNG.standard_normal((2, 5, 8)).astype(np.float32)
    artifact = export(module, x, dynamic=("batch", "time"), store=store)
    assert str(artifact.signature) == (
        "x: float32[batch, time, 8] -> output_0: float32[batch, time, 8], output_1: float32[batch, time, time]"
    )
    longer = RNG.standard_normal((3, 11, 8)).astype(np.float32)
    check_outputs(artifact, module, longer)


def test_epsilon_that_matters_in_a_small_column_beside_a_large_one_is_found(store):
    class PriceAndVolatility(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :1], torch.sqrt(x[:, 1:] + 1e-8) * 1e4], 1)

    rows = np.array([[60_000, 0], [61_000, 4e-9]], np.float32)
    with pytest.raises(ExportError) as caught:
        export(PriceAndVolatility().eval(), rows, store=store)
    assert "output 'output' channel 1 of axis 1: 2 of 4 elements are beyond" in str(caught.value)
    assert "The likely cause: the exporter dropped `+ 1e-08`" in str(caught.value)
