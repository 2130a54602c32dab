"""Small networks as other people's exporters write them, and graphs that are refused."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

helper = onnx.helper


def exported(
    network: nn.Module,
    shape: tuple[int, int, int],
    path: Path,
    *,
    dynamo: bool = True,
    dynamic: bool = True,
    opset: int = 20,
    external: bool = False,
    name: str = "pixels",
) -> Path:
    """Write ``network`` as torch's exporters do, without Secateur's own export."""
    images = torch.zeros(2 if dynamic else 1, *shape)
    options = {"input_names": [name], "opset_version": opset, "verbose": False}
    if dynamo:
        options |= {"dynamo": True, "external_data": external}
        options |= {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamic else {}
    else:
        options |= {"dynamo": False}
        options |= {"dynamic_axes": {name: {0: "n"}}} if dynamic else {}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (images,), str(path), **options)
    return path


def perceptron(width: int) -> nn.Module:
    """Two linear layers with GELU between them."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Attention(nn.Module):
    """A vision transformer of one block over patches of 4x4, as timm writes one."""

    def __init__(self, width: int = 32, heads: int = 4, side: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.2 * torch.randn(1, (side // 4) ** 2 + 1, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = perceptron(width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))  # LayerScale
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm1(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        x = x + self.scale * self.mlp(self.norm2(x))
        return self.head(self.last(x)[:, 0])


class Gated(nn.Module):
    """Squeeze and excite, SiLU, hard swish, batch-norms, a residual; as EfficientNet's blocks."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1)
        )
        self.project = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.stem(x))
        y = nn.functional.relu(self.depthwise(x))
        y = nn.functional.hardswish(self.project(y * torch.sigmoid(self.squeeze(y))))
        return self.head((x + y).mean((2, 3)))


class ChannelsLast(nn.Module):
    """Linear layers over (N, H, W, C) with LayerNorm and GELU, as ConvNeXt's blocks."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = perceptron(width)
        self.scale = nn.Parameter(torch.linspace(0.1, 0.5, width).reshape(width, 1, 1))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.head((x + self.scale * y).mean((2, 3)))


def graph(
    nodes: list[onnx.NodeProto],
    path: Path,
    *,
    inputs: dict[str, tuple] | None = None,
    outputs: dict[str, tuple] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    element: int = onnx.TensorProto.FLOAT,
    opset: int = 20,
    domains: tuple[str, ...] = (),
) -> Path:
    """Write a graph of nodes; by default from ``image`` (n, 3, 8, 8) to ``logits`` (n, 4)."""
    values = [
        [helper.make_tensor_value_info(name, element, shape) for name, shape in ends.items()]
        for ends in (inputs or {"image": ("n", 3, 8, 8)}, outputs or {"logits": ("n", 4)})
    ]
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in (constants or {}).items()]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    built = helper.make_graph(nodes, "graph", *values, tensors)
    onnx.save(helper.make_model(built, opset_imports=opsets, ir_version=10), path)
    return path
