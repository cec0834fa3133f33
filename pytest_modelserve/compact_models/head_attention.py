"""Multi-head attention whose heads can be removed; nn.MultiheadAttention ties their number to its width."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn


class HeadAttention(nn.Module):
    """The computation of an nn.MultiheadAttention with a projection each for queries, keys and values.

    It takes the same arguments, and may have fewer heads than the width holds.
    """

    # TransformerEncoderLayer reads these, and leaves its fused kernel out for a projection without bias.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first = attention.batch_first
        self.dropout = attention.dropout
        self.head_dim = attention.head_dim
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.detach().chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        has_bias = attention.in_proj_bias is not None
        biases = attention.in_proj_bias.detach().chunk(3) if has_bias else (None, None, None)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    @property
    def num_heads(self) -> int:
        """The number of heads that are left."""
        heads: int = self.q_proj.out_features // self.head_dim
        return heads

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 (a hint; the mask says the same)
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended values, and with `need_weights` the weights."""
        is_batched, batch_second = query.ndim == 3, not self.batch_first and query.ndim == 3
        inputs = [each if is_batched else each.unsqueeze(0) for each in (query, key, value)]
        inputs = [each.transpose(0, 1) if batch_second else each for each in inputs]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        queries, keys, values = (
            project(each).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project, each in zip(projections, inputs, strict=True)
        )
        mask = _scores_mask(key_padding_mask, attn_mask, queries)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(-2, -1) / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            attended = nn.functional.dropout(weights, rate) @ values
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if is_batched else weights.squeeze(0)
        else:
            attended = nn.functional.scaled_dot_product_attention(queries, keys, values, mask, rate)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        output = output.transpose(0, 1) if batch_second else output
        return output if is_batched else output.squeeze(0), weights


def attention_paths(module: nn.Module) -> list[str]:
    """Return the paths of the attention layers in `module` that can be split.

    Others are those with learned extra keys (`add_bias_kv`), with `add_zero_attn`, or of a subclass.
    """
    return [
        path
        for path, part in module.named_modules()
        if path and type(part) is nn.MultiheadAttention and part.bias_k is None and not part.add_zero_attn
    ]


def split_attention(module: nn.Module, paths: Collection[str]) -> None:
    """Replace the nn.MultiheadAttention at each of `paths` in place."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        attention: Any = module.get_submodule(path)
        setattr(module.get_submodule(parent), name, HeadAttention(attention).train(attention.training))
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder) and any(isinstance(each, HeadAttention) for each in part.modules()):
            part.use_nested_tensor = part.enable_nested_tensor = False  # nested tensors need the fused kernel


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _scores_mask(padding: Any, attention: Any, queries: torch.Tensor) -> torch.Tensor | None:
    """Return the sum of both masks, broadcast to scores (batch, heads, queries, keys); None without a mask."""
    masks = []
    if padding is not None:
        rows = padding if padding.ndim == 2 else padding.unsqueeze(0)
        masks.append(_additive(rows, queries)[:, None, None, :])
    if attention is not None:
        additive = _additive(attention, queries)
        masks.append(additive if attention.ndim == 2 else additive.reshape(queries.shape[0], -1, *additive.shape[1:]))
    return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill(mask, -torch.inf)
