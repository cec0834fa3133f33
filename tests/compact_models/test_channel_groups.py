"""Groups of channels in networks of every common form, each removal compared with the channels at zero."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelserve.compact_models.channel_groups import find_channel_groups
from pytest_modelserve.compact_models.channel_removal import (
    RemovalCheck,
    Selection,
    remaining_indices,
    remove_channels,
    zero_channels,
)
from pytest_modelserve.compact_models.head_attention import HeadAttention, attention_paths, split_attention
from pytest_modelserve.errors import ControlFlowError, UsageError


class Chain(nn.Module):
    """A network whose forward is a function of its parts, given by name."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *inputs):
        return self.function(self, *inputs)


def made(module):
    """Return `module` in eval mode with statistics of batch normalization that are not 0 and 1."""
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def groups_of(module, *inputs):
    return {group.name: group for group in find_channel_groups(module, inputs, {})}


def conv(inputs, outputs, size=3, **settings):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **settings)


IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()
ROWS = torch.linspace(-2, 2, 2 * 6).reshape(2, 6).cos()
TOKENS = torch.arange(2 * 5).reshape(2, 5) % 7

residual = Chain(
    lambda m, x: m.head(functional.adaptive_avg_pool2d(m.stem(x) + m.norm(m.branch(m.stem(x).relu())), 1).flatten(1)),
    stem=conv(3, 8), branch=conv(8, 8, bias=False), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 4),
)  # fmt: skip
grouped = Chain(
    lambda m, x: m.last(m.depthwise(m.grouped(m.first(x)).relu())),
    first=conv(3, 8), grouped=conv(8, 16, groups=4), depthwise=conv(16, 32, groups=16), last=conv(32, 2, 1),
)  # fmt: skip
concat = Chain(
    lambda m, x: m.head(torch.cat([m.a(x), m.b(x).sigmoid(), x], 1).flatten(1)),
    a=conv(3, 4), b=conv(3, 6), head=nn.Linear(13 * 64, 3),
)  # fmt: skip
gate = Chain(
    lambda m, x: m.head(functional.max_pool2d(m.body(x) * m.up(m.down(m.body(x).mean((2, 3), keepdim=True)).relu()).sigmoid(), 2)
                        .flatten(1)),
    body=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), head=nn.Linear(8 * 16, 3),
)  # fmt: skip
tied = Chain(
    lambda m, ids: functional.linear(m.middle(m.table(ids).relu()), m.table.weight),
    table=nn.Embedding(7, 6), middle=nn.Linear(6, 6),
)  # fmt: skip
glu = Chain(lambda m, x: m.out(functional.glu(m.wide(x))), wide=nn.Linear(6, 16), out=nn.Linear(8, 2))
chunked = Chain(lambda m, x: m.out(torch.mul(*m.wide(x).chunk(2, -1))), wide=nn.Linear(6, 16), out=nn.Linear(8, 2))
shared = Chain(lambda m, x: m.out(m.again(m.again(m.first(x)).relu())), first=nn.Linear(6, 8), again=nn.Linear(8, 8),
               out=nn.Linear(8, 2))  # fmt: skip
transposed = Chain(
    lambda m, x: m.out(m.up(m.norm(m.down(x))).tanh()),
    down=conv(3, 8), norm=nn.InstanceNorm2d(8, affine=True), up=nn.ConvTranspose2d(8, 6, 2, stride=2), out=conv(6, 2),
)  # fmt: skip
shuffled = Chain(lambda m, x: m.out(functional.pixel_shuffle(m.wide(x), 2)), wide=conv(3, 16), out=conv(4, 2))
scaled = Chain(
    lambda m, x: m.out(m.hidden(x) * m.gamma + m.position), hidden=nn.Linear(6, 8), out=nn.Linear(8, 2),
    gamma=nn.Parameter(torch.linspace(1, 2, 8)), position=nn.Parameter(torch.linspace(0, 1, 8)[None]),
)  # fmt: skip
matmul = Chain(
    lambda m, x: (x @ m.first).relu() @ m.second, first=nn.Parameter(torch.linspace(-1, 1, 48).reshape(6, 8)),
    second=nn.Parameter(torch.linspace(1, -1, 16).reshape(8, 2)),
)  # fmt: skip
standardized = Chain(
    lambda m, x: m.out(torch.sigmoid((m.hidden(x) - m.mean) / m.deviation)),
    hidden=nn.Linear(6, 8), out=nn.Linear(8, 2), mean=nn.Buffer(torch.linspace(-1, 1, 8)),
    deviation=nn.Buffer(torch.linspace(0.5, 2, 8)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "inputs", "sizes"),
    [
        (residual, IMAGES, {"stem + branch": 8}),
        (grouped, IMAGES, {"first": 2, "grouped + depthwise": 4}),
        (concat, IMAGES, {"a": 4, "b": 6}),
        (gate, IMAGES, {"body + up": 8, "down": 4}),
        (tied, TOKENS, {"table + middle": 6}),
        (glu, ROWS, {"wide": 8}),
        (chunked, ROWS, {"wide": 8}),
        (shared, ROWS, {"first + again": 8}),
        (transposed, IMAGES, {"down": 8, "up": 6}),
        (shuffled, IMAGES, {"wide": 4}),
        (scaled, ROWS, {"hidden": 8}),
        (matmul, ROWS, {"first": 8}),
        (standardized, ROWS, {"hidden": 8}),
    ],
    ids=["residual", "grouped", "concat", "gate", "tied", "glu", "chunked", "shared", "transposed", "shuffled",
         "scaled", "matmul", "standardized"],
)  # fmt: skip
def test_removed_channels_give_the_outputs_of_channels_at_zero(module, inputs, sizes):
    module = made(copy.deepcopy(module))
    groups = groups_of(module, inputs)
    assert {name: len(group.channels) for name, group in groups.items() if not group.reason} == sizes
    selections = [Selection(groups[name], (0, size - 1)[: size - 1]) for name, size in sizes.items()]
    masked, smaller = copy.deepcopy(module).double(), copy.deepcopy(module).double()
    zero_channels(masked, selections)
    remove_channels(smaller, remaining_indices(module, selections))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    torch.testing.assert_close(smaller(inputs), masked(inputs))
    assert (
        RemovalCheck(module, (inputs.float() if inputs.is_floating_point() else inputs,), {}).problem(selections) == ""
    )
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("removed", [(0,), (0, 2)])
def test_layers_state_their_new_sizes(removed):
    module = made(copy.deepcopy(grouped))
    groups = groups_of(module, IMAGES)
    selections = [Selection(groups["first"], (1,)), Selection(groups["grouped + depthwise"], removed)]
    remove_channels(module, remaining_indices(module, selections))
    left = 4 * (4 - len(removed))
    assert (module.grouped.in_channels, module.grouped.out_channels, module.grouped.groups) == (4, left, 4)
    assert (module.depthwise.in_channels, module.depthwise.groups, module.depthwise.out_channels) == (
        left, left, 2 * left,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "inputs", "layer", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)), ROWS, "0", "layer_norm of '1' computes a"),
        (nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 2)), IMAGES, "0", "group_norm of '1' computes a"),
        (nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 2)), ROWS, "0", "softmax of '1' computes a"),
        (nn.Sequential(nn.Linear(6, 2)), ROWS, "0", "it writes an output of the model"),
        (Chain(lambda m, x: m.out(m.h(x).cumsum(-1)), h=nn.Linear(6, 8), out=nn.Linear(8, 2)), ROWS, "h", "cumsum"),
        (Chain(lambda m, x: m.out(m.h(x) + x), h=nn.Linear(6, 6), out=nn.Linear(6, 2)), ROWS, "h", "meets other values"),
        (Chain(lambda m, x: m.out(m.h(x).mean(-1, keepdim=True)), h=nn.Linear(6, 8), out=nn.Linear(1, 2)), ROWS, "h",
         "mean "),
        (Chain(lambda m, x: m.out(m.rnn(m.h(x))[0]), h=nn.Linear(6, 4), rnn=nn.GRU(4, 4), out=nn.Linear(4, 2)), ROWS,
         "h", "gru"),
        (Chain(lambda m, x: functional.linear(m.h(x), m.w * 2), h=nn.Linear(6, 8), w=nn.Parameter(torch.ones(2, 8))), ROWS, "h",
         "linear"),
    ],
    ids=["layer norm", "group norm", "softmax", "output", "cumsum", "input", "mean", "recurrent", "computed weight"],
)  # fmt: skip
def test_channels_that_cannot_be_followed_have_a_reason(module, inputs, layer, reason):
    group = groups_of(made(copy.deepcopy(module)), inputs)[layer]
    assert reason in group.reason


class Attention(nn.Module):
    """Attention of its own, by the fused operator or by products, with the number or the width of heads stated."""

    def __init__(self, *, fused, shape):
        super().__init__()
        self.qkv, self.out, self.last = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 2)
        self.fused, self.shape = fused, shape

    def forward(self, x):
        q, k, v = (each.unflatten(-1, self.shape).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
        return self.last(self.out(y.transpose(1, 2).flatten(2)))


SEQUENCES = torch.linspace(-3, 3, 2 * 5 * 8).reshape(2, 5, 8).sin()


@pytest.mark.parametrize("fused", [True, False])
def test_heads_of_a_users_own_attention_are_removed_if_its_forward_states_their_width(fused):
    module = made(Attention(fused=fused, shape=(-1, 2)))
    heads = groups_of(module, SEQUENCES)["Attention"]
    assert (heads.kind, len(heads.channels)) == ("heads", 4)
    assert RemovalCheck(module, (SEQUENCES,), {}).problem([Selection(heads, (0, 2))]) == ""


@pytest.mark.parametrize("shape", [(4, 2), (4, -1)])
def test_heads_are_refused_if_forward_states_their_number(shape):
    module = made(Attention(fused=True, shape=shape))
    heads = groups_of(module, SEQUENCES)["Attention"]
    problem = RemovalCheck(module, (SEQUENCES,), {}).problem([Selection(heads, (0, 2))])
    assert problem.startswith(("forward fails without its channels: ", "without its channels layer 'out' is not what"))


def test_heads_that_share_keys_stay_with_a_reason():
    def forward(m, x):
        q, k, v = (each.unflatten(-1, (-1, 2)).transpose(1, 2) for each in m.qkv(x).split((8, 4, 4), -1))
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.last(m.out(y.transpose(1, 2).flatten(2)))

    module = made(Chain(forward, qkv=nn.Linear(8, 16), out=nn.Linear(8, 8), last=nn.Linear(8, 2)))
    groups = groups_of(module, SEQUENCES)
    assert "whose heads share keys" in groups["qkv"].reason
    assert groups["out"].reason == ""


def test_wrong_channel_shows_where_the_output_is_a_class():
    module = Chain(
        lambda m, x: m.attention(x).mean(1).argmax(-1), attention=made(Attention(fused=True, shape=(4, -1)))
    ).eval()
    heads = groups_of(module, SEQUENCES)["attention"]
    check = RemovalCheck(module, (SEQUENCES,), {})
    assert check.problem([Selection(heads, (0, 2))]).startswith(
        "without its channels layer 'attention.out' is not what"
    )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_split_attention_computes_the_same(batch_first, need_weights):
    module = made(nn.ModuleDict({"attention": nn.MultiheadAttention(8, 4, batch_first=batch_first)}))
    padding = torch.tensor([[False, False, True, False, True]] * 2)
    mask = torch.ones(5, 5).triu(1).bool()
    x, lines = (SEQUENCES, padding) if batch_first else (SEQUENCES.transpose(0, 1), padding)
    expected = module["attention"](x, x, x, lines, need_weights, mask)
    split_attention(module, attention_paths(module))
    assert isinstance(module["attention"], HeadAttention)
    got = module["attention"](x, x, x, lines, need_weights, mask)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("fused", "norm_first"), [(True, False), (False, True)])
def test_transformer_of_torch_loses_heads_and_hidden_units_and_keeps_its_width(fused, norm_first):
    layer = nn.TransformerEncoderLayer(8, 4, 16, 0.0, batch_first=True, norm_first=norm_first)
    module = made(nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=fused), nn.Linear(8, 2)))
    split_attention(module, attention_paths(module))
    groups = groups_of(module, SEQUENCES)
    removable = {name: (group.kind, len(group.channels)) for name, group in groups.items() if not group.reason}
    assert removable == {
        "0.layers.0.self_attn": ("heads", 4), "0.layers.0.linear1": ("channels", 16),
        "0.layers.1.self_attn": ("heads", 4), "0.layers.1.linear1": ("channels", 16),
    }  # fmt: skip
    selections = [Selection(group, (1, 2)) for group in groups.values() if not group.reason]
    assert RemovalCheck(module, (SEQUENCES,), {}).problem(selections) == ""
    remove_channels(module, remaining_indices(module, selections))
    assert module[0].layers[0].self_attn.num_heads == 2


def test_branch_on_data_is_refused_with_its_line():
    module = Chain(lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x), a=nn.Linear(6, 2))
    with pytest.raises(ControlFlowError, match=r"channels cannot be followed: forward branches on a value of the data"):
        groups_of(module, ROWS)


def test_module_that_torch_cannot_trace_is_refused():
    module = Chain(lambda m, x: m.a(torch.from_numpy(x.detach().numpy().copy())), a=nn.Linear(6, 2))
    with pytest.raises(UsageError, match=r"torch\.export cannot trace Chain"):
        groups_of(module, ROWS)
