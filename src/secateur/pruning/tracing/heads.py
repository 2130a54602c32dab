"""torch's own attention with as many heads as there are, whatever the width outside.

``nn.MultiheadAttention`` has one width inside and outside, so that no head can leave alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SeparateHeads(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` whose heads need not add up to ``embed_dim``.

    It computes the same from the same tensors; made by :func:`separate_heads`.

    Shape:
        As ``nn.MultiheadAttention``; ``in_proj_weight`` is (3 x heads x head_dim, embed_dim),
        ``out_proj.weight`` (embed_dim, heads x head_dim).
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of ``nn.MultiheadAttention``."""
        batched = query.ndim == 3
        q, k, v = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in self._project(query, key, value, batched)
        )
        mask = _merged(attn_mask, key_padding_mask, self.num_heads, q)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = (q * q.shape[-1] ** -0.5) @ k.mT
            weights = (weights if mask is None else weights + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, batched: bool
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads, each (N, L, heads x head_dim)."""
        alone = query is key and key is value
        inputs = [
            x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)
            for x in ((query,) if alone else (query, key, value))
        ]
        if self.in_proj_weight is not None and alone:
            return F.linear(inputs[0], self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        if self.in_proj_weight is not None:
            weights: tuple[Tensor | None, ...] = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = inputs * 3 if alone else inputs
        return tuple(
            F.linear(x, weight, bias)  # type: ignore[arg-type]
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )


def _merged(mask: Tensor | None, padding: Tensor | None, heads: int, like: Tensor) -> Tensor | None:
    """What is added to the scores, (N or 1, heads or 1, L or 1, S), or None."""
    if mask is not None:
        mask = _added(mask, like)
        mask = mask if mask.ndim == 2 else mask.unflatten(0, (-1, heads))
    if padding is None:
        return mask
    padding = _added(padding, like)
    padding = padding[:, None, None] if padding.ndim == 2 else padding[None, None, None]
    return padding if mask is None else mask + padding


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add: ``-inf`` where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def separate_heads(model: nn.Module) -> None:
    """Make every ``nn.MultiheadAttention`` of ``model`` one that can lose heads, in place.

    Those with added keys (``add_bias_kv``, ``add_zero_attn``) stay as they are.
    """
    for layer in model.modules():
        plain = type(layer) is nn.MultiheadAttention
        if plain and layer.bias_k is None and not layer.add_zero_attn:
            layer.__class__ = SeparateHeads
            layer._qkv_same_embed_dim = False  # torch's fused encoder layer takes it at its word
