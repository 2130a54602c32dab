"""Forms of attention that networks are published with; each loses half its width exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from helpers.halving import IMAGES, halve


class Tokens(nn.Module):
    """A patch embedding of 32 channels, a block with a residual connection, and a head."""

    def __init__(self, block: nn.Module, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 32, 2, 2), nn.LayerNorm(32)
        self.block, self.head = block, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head((x + self.block(self.norm(x))).mean(1))


class WidthOfInput(nn.Module):
    """Attention whose forward takes the width of a head from its input, as DeiT's first form."""

    def __init__(self, talking: bool) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.before, self.after = (
            (nn.Linear(4, 4) if talking else nn.Identity()) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("talking", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 0.25])
def test_a_width_taken_from_the_input_shrinks_with_it(talking, fraction) -> None:
    """Talking heads (Shazeer et al. 2020) mix heads, so that all must stay."""
    small = halve(
        Tokens(WidthOfInput(talking)), 0.65 if fraction < 0.5 else 0.32, fraction=fraction
    )
    left = int(32 * (1 - fraction))
    assert small.patch.out_channels == small.block.proj.in_features == left
    assert small.block.qkv.out_features == 3 * left
    assert small.block.num_heads == 4


class CrossCovariance(nn.Module):
    """Attention between channels (El-Nouby et al. 2021, eq. 2): the softmax is over channels."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.fused = 4, fused
        if not fused:
            self.temperature = nn.Parameter(torch.rand(4, 1, 1))
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.size()
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            x = (q @ k.mT * self.temperature).softmax(-1) @ v
        return self.proj(x.permute(0, 3, 1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 0.25])
def test_attention_between_channels_loses_heads(fused, fraction) -> None:
    small = halve(
        Tokens(CrossCovariance(fused)), 0.65 if fraction < 0.5 else 0.32, fraction=fraction
    )
    left = int(4 * (1 - fraction))
    assert small.block.num_heads == left
    assert fused or len(small.block.temperature) == left
    assert small.patch.out_channels == 8 * left


class ClassToken(nn.Module):
    """A scale of channels whose tokens come from different layers (Touvron et al. 2021, CaiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.others = nn.Linear(32, 32), nn.Linear(32, 32)
        self.scale = nn.Parameter(torch.rand(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.cat([self.first(x[:, :1]), self.others(x[:, 1:])], 1)


def test_a_scale_of_channels_does_not_vary_with_the_token() -> None:
    small = halve(Tokens(ClassToken()), 0.4)
    assert small.block.scale.shape == (16,)


def test_a_depthwise_convolution_under_two_names_keeps_one_channel_per_group() -> None:
    """Blocks that share a module of their position encoding hold it under their own names."""
    shared = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    blocks = [nn.Sequential(shared, nn.Conv2d(16, 16, 1), nn.ReLU()) for _ in range(2)]
    network = nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, nn.Conv2d(16, 5, 6), nn.Flatten())
    small = halve(network, 0.5)
    assert small[1][0] is small[2][0]
    assert small[1][0].groups == 8


class Linear(nn.Module):
    """Attention without a softmax of scores: keys times values first (Katharopoulos et al. 2020).

    With ``kernel`` a row of ones counts the keys, as in EfficientViT (Cai et al. 2023, eq. 2), else
    keys have a softmax over tokens, as in Shen et al. 2021, eq. 3.
    """

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.kernel, self.num_heads = kernel, 4
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.kernel:
            v = F.pad(v, (0, 1), value=1.0)
            x = F.relu(q) @ (F.relu(k).mT @ v)
            x = x[..., :-1] / (x[..., -1:] + 1e-6)
        else:
            x = q @ (k.softmax(2).mT @ v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("kernel", [False, True])
def test_linear_attention_loses_channels_of_each_head(kernel) -> None:
    small = halve(Tokens(Linear(kernel)), 0.32)
    assert small.block.num_heads == 4
    assert small.block.qkv.out_features == 48


class Additive(nn.Module):
    """Additive attention with normalized queries (Shaker et al. 2023, eq. 6 to 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(32, 32), nn.Linear(32, 32)
        self.weights, self.proj = nn.Parameter(torch.randn(32, 1)), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.normalize(self.query(x), dim=-1), F.normalize(self.key(x), dim=-1)
        scores = F.normalize(query @ self.weights, dim=1)
        return self.proj((scores * query).sum(1, keepdim=True) * key) + query


def test_normalized_queries_shrink() -> None:
    small = halve(Tokens(Additive()), 0.35)
    assert small.block.query.out_features == small.block.key.out_features == 16


class Aggregated(nn.Module):
    """One token of three layers, mixed by a convolution over tokens (Xu et al. 2021, CoaT)."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.mix = nn.Conv1d(3, 2, kernel, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.stack([layer(x)[:, 0] for layer in self.layers], 1)).mean(
            1, keepdim=True
        )


def test_a_convolution_over_tokens_passes_channels() -> None:
    small = halve(Tokens(Aggregated(1)), 0.4)
    assert small.block.mix.weight.shape == (2, 3, 1)
    assert [layer.out_features for layer in small.block.layers] == [16, 16, 16]


def test_a_convolution_along_channels_keeps_them() -> None:
    prunable = secateur.find_prunable(Tokens(Aggregated(3)), IMAGES)
    assert not prunable.groups


class TableOnDemand(nn.Module):
    """Attention that stores a table of positions when it meets a new number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.position = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(3, 4)
        self.register_buffer("table", torch.zeros(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        if self.table.shape[1] != tokens:
            steps = torch.arange(tokens, dtype=x.dtype)
            away = (steps[:, None] - steps)[..., None].to(x.device)
            self.table = torch.cat([away, away**2, away.sin()], -1)
        q, k, v = self.qkv(x).view(batch, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT).softmax(-1) + self.position(self.table).permute(2, 0, 1).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).flatten(2))


def test_what_forward_stores_in_a_module_is_undone() -> None:
    """Else the table of the first run would count as a weight in the second."""
    network = Tokens(TableOnDemand())
    graph = secateur.find_prunable(network, IMAGES).graph
    assert "block.table" not in {axis.tensor for axis in graph.sizes}
    small = halve(network, 0.4)
    assert small.block.qkv.out_features == 48
    assert small.block.table.shape == (16, 16, 3)


class GlobalContext(nn.Module):
    """A sum over positions with weights that one channel gives (Cao et al. 2019, eq. 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.first, self.second = nn.Linear(32, 1), nn.Linear(32, 8), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        context = (x.mT @ self.weight(x).softmax(1)).mT
        return x + self.second(F.relu(self.first(context)))


def test_a_map_of_one_channel_weighs_all_others() -> None:
    small = halve(Tokens(GlobalContext()), 0.4)
    assert small.block.weight.weight.shape == (1, 16)
    assert small.block.first.out_features == 4


class PooledQueries(nn.Module):
    """Queries are maxima over groups of tokens (Ryali et al. 2023, Hiera)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = q.unflatten(2, (2, -1)).amax(2)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(x).mean(1, keepdim=True)


def test_maxima_of_queries_are_scaled_with_the_queries() -> None:
    small = halve(Tokens(PooledQueries()), 0.4)
    assert small.block.qkv.out_features == 48


class RootMeanSquare(nn.Module):
    """An RMS norm (Zhang and Sennrich 2019, eq. 4) of plain operations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight = nn.Linear(32, 32), nn.Parameter(torch.rand(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


def test_a_scale_cannot_correct_the_epsilon_of_a_root() -> None:
    """With small activations, a removal that scales the weight differs from the mask."""
    prunable = secateur.find_prunable(Tokens(RootMeanSquare()), IMAGES)
    removable = {member.axis.tensor for group in prunable.groups for member in group.makers()}
    assert "block.layer.weight" not in removable
