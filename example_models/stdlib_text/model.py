"""Two networks that classify lines as prose or code: by characters only, and by three inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from example_models.stdlib_text.encoding import CHARACTERS, MEASUREMENTS, PADDING

LABELS = ("code", "prose")


class TextTransformer(nn.Module):
    """Two attention layers over characters (batch, seq) of any batch size and length, with logits (batch, 2).

    A convolution replaces position embeddings, so the length is unlimited. The classification reads a summary token
    before the first character. That token is never masked, so a line of padding only does not become NaN. `masked` is
    the attention score of padding.
    """

    def __init__(self, *, width: int = 32, masked: float = -torch.inf) -> None:
        super().__init__()
        self.masked = masked
        self.embedding = nn.Embedding(CHARACTERS, width, padding_idx=PADDING)
        self.context = nn.Conv1d(width, width, kernel_size=5, padding=2)
        self.summary = nn.Parameter(torch.randn(1, 1, width) / 8)
        layer = nn.TransformerEncoderLayer(
            width, nhead=2, dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, len(LABELS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(ids)
        tokens = embedded + self.context(embedded.transpose(1, 2)).transpose(1, 2)
        # len(ids) is a plain int, which would fix the batch size in the trace; ids.shape[0] is symbolic.
        summaries = self.summary.expand(ids.shape[0], -1, -1)
        sequence = torch.cat([summaries, tokens], dim=1)
        mask = torch.where(nn.functional.pad(ids == PADDING, (1, 0)), self.masked, 0.0)
        logits: torch.Tensor = self.output(self.encoder(sequence, src_key_padding_mask=mask)[:, 0])
        return logits


class TextCNN(nn.Module):
    """One convolution over characters (batch, seq) with maximum pooling, and a dense layer, with logits (batch, 2).

    The other inputs are measurements (batch, 4), standardized by their statistics in training, and the index of the
    family (batch,). Padding has no activation, so a line of padding only has zeros for all patterns.
    """

    def __init__(self, *, families: int, patterns: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 16, padding_idx=PADDING)
        self.patterns = nn.Conv1d(16, patterns, kernel_size=5, padding=2)
        self.standardize = nn.BatchNorm1d(len(MEASUREMENTS))
        self.family = nn.Embedding(families, 4)
        self.dropout = nn.Dropout(0.3)
        self.hidden = nn.Linear(patterns + len(MEASUREMENTS) + 4, 64)
        self.output = nn.Linear(64, len(LABELS))

    def forward(self, ids: torch.Tensor, measurements: torch.Tensor, family: torch.Tensor) -> torch.Tensor:
        activations = torch.relu(self.patterns(self.embedding(ids).transpose(1, 2)))
        strongest = (activations * (ids != PADDING).unsqueeze(1)).amax(dim=2)
        features = torch.cat([self.dropout(strongest), self.standardize(measurements), self.family(family)], dim=1)
        logits: torch.Tensor = self.output(torch.relu(self.hidden(features)))
        return logits


def fit(model: nn.Module, data: Mapping[str, NDArray[Any]], progress: Any, *, epochs: int) -> None:
    """Train `model` in place by AdamW on cross-entropy, in shuffled batches of 64.

    `data` holds the inputs of `model` by name, and the labels `prose`.
    """
    inputs = {name: torch.from_numpy(array) for name, array in data.items()}
    prose = inputs.pop("prose")
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(prose)).split(64)]
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=len(batches))
    for rows in progress(batches, "training stdlib_text"):
        optimizer.zero_grad()
        logits = model(**{name: tensor[rows] for name, tensor in inputs.items()})
        nn.functional.cross_entropy(logits, prose[rows]).backward()
        optimizer.step()
        schedule.step()


def transformer_source(ids: NDArray[Any], prose: NDArray[Any]) -> ms.ModelSource:
    """Return the source of the trained network on characters only."""
    return ms.ModelSource(
        name="stdlib_text_transformer",
        build=TextTransformer,
        fit=partial(fit, epochs=2),
        data={"ids": ids, "prose": prose},
        example_inputs=ids[:2],
    )


def cnn_source(inputs: Mapping[str, NDArray[Any]], prose: NDArray[Any], *, families: int) -> ms.ModelSource:
    """Return the source of the trained network on characters, measurements and families."""
    return ms.ModelSource(
        name="stdlib_text_cnn",
        build=partial(TextCNN, families=families),
        fit=partial(fit, epochs=3),
        data={**inputs, "prose": prose},
        example_inputs={name: array[:2] for name, array in inputs.items()},
    )
