"""Modules that return other outputs on a second run are named as such, and the caller's module is never changed."""

import random
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.errors import ExportError
from pytest_modelserve.training import export

ROWS = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


class DropoutLeftOn(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class Sampling(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class RandomMask(nn.Module):
    def forward(self, x):
        return x * torch.bernoulli(torch.full_like(x, 0.5))


class Streaming(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 3)
        self.register_buffer("hidden", torch.zeros(1, 3))

    def forward(self, x):
        states = self.cell(x, self.hidden.expand(len(x), -1))
        self.hidden = states[-1:].detach()
        return states


class CountsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class KeepsAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.mean())
        return x + torch.stack(self.seen).sum()


class CountsInPython(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class HoldsALock(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.lock = threading.Lock()

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class OtherRandomNumbers(nn.Module):
    def forward(self, x):
        return x * random.random()


class UnusedRate(nn.Module):
    """The dropout rate of attention is 0 in eval mode: it is not the random operator."""

    def forward(self, x):
        y = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.0)[:, 0]
        return y + torch.rand_like(y)


@pytest.mark.parametrize(
    ("module", "operator", "code"),
    [
        (DropoutLeftOn, "aten.dropout.default", "nn.functional.dropout(x, 0.5, training=True)"),
        (Sampling, "aten.randn_like.default", "x + torch.randn_like(x)"),
        (RandomMask, "aten.bernoulli.default", "torch.bernoulli("),
        (UnusedRate, "aten.rand_like.default", "y + torch.rand_like(y)"),
    ],
)
def test_random_operator_is_named_with_its_source_line(store, module, operator, code):
    with pytest.raises(ExportError) as caught:
        export(module().eval(), ROWS, store=store)
    message = str(caught.value)
    assert f"the operator {operator} at {__file__}:" in message
    assert code in message


@pytest.mark.parametrize(
    ("module", "state"),
    [(Streaming, "hidden"), (CountsInPlace, "calls"), (KeepsAList, "seen"), (CountsInPython, "calls")],
)
def test_state_that_changes_the_outputs_is_named(store, module, state):
    with pytest.raises(ExportError, match=f"forward changes 'inner.{state}'. Take that state as an input"):
        export(Wrapped(module()).eval(), ROWS, store=store)


@pytest.mark.parametrize("module", [Streaming, CountsInPlace, HoldsALock])
def test_buffers_of_the_caller_are_not_changed(store, module):
    kept = module().eval()
    before = {name: (buffer, buffer.clone()) for name, buffer in kept.named_buffers()}
    with pytest.raises(ExportError):
        export(kept, ROWS, store=store)
    for name, buffer in kept.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])


def test_state_that_does_not_change_the_outputs_is_accepted(store):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if not torch.compiler.is_exporting():
                self.calls += 1
            return x * 2

    module = Remembers().eval()
    assert export(module, ROWS, store=store).name == "Remembers"
    assert module.calls == 0


def test_random_numbers_of_another_library_are_suggested_where_nothing_else_is_found(store):
    with pytest.raises(ExportError, match=re.escape("look for random numbers of another library, the time, or state")):
        export(OtherRandomNumbers().eval(), ROWS, store=store)
