"""The quantized graph in PyTorch: every tensor real, and rounded where the file rounds it.

The exported float graph is run node by node, so that whatever is learned or measured here is of
the graph that ships. Rounding is affine.py's, operator by operator; sums are taken in float32 where
a runtime takes them in int32, and requantization divides where a runtime multiplies, so the two may
differ by one step of a grid where a value lies next to a half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.onnx_ir.model import Graph, attribute
from secateur.quantization.affine import Affine
from secateur.quantization.placement import Placement
from secateur.quantization.scheme import Layer, Scheme, weighted_nodes

Values = dict[str, Tensor]


def unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Operators of ``model`` that cannot be simulated, sorted; the batch, where it is built in."""
    unknown = {node.op_type for node in model.graph.node} - _OPERATORS.keys()
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return sorted(unknown) + ([f"for batch {batch} only"] if batch else [])


class Simulated(nn.Module):
    """A float graph of ``export_onnx`` as a PyTorch network, rounded as a scheme says.

    Args:
        model: The float graph.
        scheme: What to round to; None computes the float graph.

    Attributes:
        weights: By node, the weight of each convolution and linear layer, as it is multiplied.
        biases: By node, likewise.
        quantizers: By tensor, what rounds an activation; all tensors of a group share one.

    Raises:
        SecateurError: The graph holds an operator that is not known here; the message names it.
    """

    def __init__(self, model: onnx.ModelProto, scheme: Scheme | None = None) -> None:
        super().__init__()
        self.graph = Graph(model)
        self.nodes = self.graph.nodes
        for node in self.nodes:
            if node.op_type not in _OPERATORS:
                raise SecateurError(
                    "an operator that the simulation does not know",
                    where=f"node {node.name}",
                    found=node.op_type,
                    expected=", ".join(sorted(_OPERATORS)),
                    remedy="quantize without equalization, correction, adaptive rounding, "
                    "scan and training: those run the graph here",
                )
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self._placement = Placement((), {})
        self.quantizers: dict[str, Quantizer] = {}
        self._shared = nn.ModuleList()
        for node in weighted_nodes(self.graph):
            bias = self.graph.optional(node, 2)
            self._set(node.name, self.graph.constant(node.input[1]), bias)
        self._last_use = {name: n for n, node in enumerate(self.nodes) for name in node.input}
        if scheme is not None:
            self.follow(scheme)

    def follow(self, scheme: Scheme) -> None:
        """Round by ``scheme`` from now on."""
        self._shared, self.quantizers = nn.ModuleList(), {}
        self._placement = scheme.placement
        for group in scheme.placement.groups:
            quantizer = Quantizer(scheme.activations[group[0]])
            self._shared.append(quantizer)
            self.quantizers |= dict.fromkeys(group, quantizer)
        for name, layer in scheme.layers.items():
            self.set_layer(name, layer)

    def set_layer(self, name: str, layer: Layer) -> None:
        """Multiply by what the integers of ``layer`` stand for."""
        self._set(name, layer.weight, layer.real_bias)

    def _set(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        self.weights[name] = nn.Parameter(torch.tensor(weight), requires_grad=False)
        if bias is not None:
            self.biases[name] = nn.Parameter(torch.tensor(bias), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) for normalized images (N, C, R, R)."""
        values = self.start(images)
        for _ in self.walk(values):
            pass
        return values[self.graph.outputs[0]]

    def start(self, images: Tensor) -> Values:
        """The values before the first node: the images, rounded."""
        name = self.graph.inputs[0]
        return {name: self._result(name, images)}

    def walk(self, values: Values, first: int = 0) -> Iterator[onnx.NodeProto]:
        """Run the nodes from number ``first`` on, yielding each before it is run.

        Between two steps ``values`` holds the tensors still to be read, by name, as they are read.
        """
        for number in range(first, len(self.nodes)):
            node = self.nodes[number]
            yield node
            self._run(node, values)
            for name in node.input:
                if self._last_use.get(name) == number and name not in self.graph.outputs:
                    values.pop(name, None)

    def branch(self, values: Values, number: int, weight: Tensor) -> Tensor:
        """Logits from node ``number`` on, given ``values``, with another weight in that node."""
        name, ahead = self.nodes[number].name, dict(values)
        kept, self.weights[name].data = self.weights[name].data, weight
        for _ in self.walk(ahead, number):
            pass
        self.weights[name].data = kept
        return ahead[self.graph.outputs[0]]

    def layer_output(self, node: onnx.NodeProto, x: Tensor, weight: Tensor) -> Tensor:
        """What a convolution or linear layer would give for ``x`` with ``weight`` and no bias."""
        return _OPERATORS[node.op_type](node, [x, weight], self.graph)

    def _run(self, node: onnx.NodeProto, values: Values) -> None:
        inputs: list[Any]
        if node.name in self.weights:
            inputs = [self.read(values, node), *self.parameters_of(node.name)]
        else:
            inputs = [
                self.read(values, node, index)
                if name in values
                else (self.graph.constant(name) if name else None)
                for index, name in enumerate(node.input)
            ]
        results = _OPERATORS[node.op_type](node, inputs, self.graph)
        if isinstance(results, Tensor):
            results = (results,)
        for name, result in zip(node.output, results, strict=True):
            values[name] = self._result(name, result)

    def parameters_of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that node ``name`` computes with."""
        return self.weights[name], self.biases.get(name)

    def read(self, values: Values, node: onnx.NodeProto, index: int = 0) -> Tensor:
        """Input ``index`` of ``node``, rounded where ``node`` reads it so."""
        name = node.input[index]
        rounds = name in self._placement.unrounded
        if rounds and not self._placement.reads_unrounded(node, name):
            return self.quantizers[name](values[name])
        return values[name]

    def _result(self, name: str, value: Tensor) -> Tensor:
        """What is kept of a new tensor: rounded, unless some node reads it unrounded."""
        quantizer = self.quantizers.get(name)
        if quantizer is None or name in self._placement.unrounded:
            return value
        return quantizer(value)


class Quantizer(nn.Module):
    """Rounds a tensor to an affine grid and back: D(Q(x)), by affine.py's arithmetic."""

    delta: Tensor
    zero_point: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.low, self.high, self.axis = affine.grid.low, affine.grid.high, affine.axis
        self.register_buffer("delta", torch.tensor(affine.delta))
        self.register_buffer("zero_point", torch.tensor(affine.zero_point, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        delta, zero = self.delta, self.zero_point
        q = x.div(delta).round_().add_(zero).clamp_(self.low, self.high)
        return q.sub_(zero).mul_(delta)


# ---- operators: (node, inputs with constants as arrays, graph) to one tensor or several


def _sides(node: onnx.NodeProto, name: str, default: int) -> tuple[int, int]:
    rows, columns = attribute(node, name, [default, default])
    return rows, columns


def _padded(node: onnx.NodeProto, x: Tensor, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """Return ``x`` and the padding still to be done; uneven padding is done here."""
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    kernel = attribute(node, "kernel_shape", [1, 1])
    # oneDNN's weight gradient of a map smaller than the kernel is slow: see kernels.py.
    small = torch.is_grad_enabled() and min(x.shape[2:]) < max(kernel)
    if (top, left) == (bottom, right) and not small:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, weight, *rest = inputs
    x, padding = _padded(node, x)
    return F.conv2d(
        x,
        torch.as_tensor(weight),
        rest[0] if rest else None,
        _sides(node, "strides", 1),
        padding,
        _sides(node, "dilations", 1),
        attribute(node, "group", 1),
    )


def _gemm(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, weight, *rest = inputs
    return F.linear(x, torch.as_tensor(weight), rest[0] if rest else None)


def _clip(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    bounds = (None if bound is None else bound.item() for bound in (*inputs[1:], None, None)[:2])
    return inputs[0].clamp(*bounds)


def _max_pool(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, padding = _padded(node, inputs[0], -float("inf"))
    kernel = attribute(node, "kernel_shape")
    ceil = bool(attribute(node, "ceil_mode", 0))
    return F.max_pool2d(
        x, kernel, _sides(node, "strides", 1), padding, _sides(node, "dilations", 1), ceil
    )


def _average_pool(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise SecateurError("uneven padding of an average", where=f"node {node.name}")
    return F.avg_pool2d(
        inputs[0],
        attribute(node, "kernel_shape"),
        _sides(node, "strides", 1),
        (top, left),
        bool(attribute(node, "ceil_mode", 0)),
        bool(attribute(node, "count_include_pad", 0)),
    )


def _reshape(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, shape = inputs[0], [int(side) for side in inputs[1]]
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape)])


def _split(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> tuple[Tensor, ...]:
    axis = attribute(node, "axis", 0)
    if len(inputs) > 1:
        return inputs[0].split([int(size) for size in inputs[1]], axis)
    return inputs[0].tensor_split(len(node.output), axis)


def _slice(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    axes = range(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(where)]


def _resize(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, scales = inputs[0], inputs[2] if len(inputs) > 2 else None
    if attribute(node, "mode", b"nearest") != b"nearest" or scales is None or not len(scales):
        raise SecateurError("a resize other than by nearest and factors", where=f"node {node.name}")
    return F.interpolate(x, scale_factor=tuple(float(s) for s in scales[2:]), mode="nearest")


def _axes(inputs: list[Any]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in inputs[1])


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value)


_OPERATORS: dict[str, Callable[[onnx.NodeProto, list[Any], Graph], Any]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Relu": lambda node, inputs, graph: inputs[0].relu(),
    "Clip": _clip,
    "Sigmoid": lambda node, inputs, graph: inputs[0].sigmoid(),
    "HardSigmoid": lambda node, inputs, graph: (
        inputs[0] * attribute(node, "alpha", 0.2) + attribute(node, "beta", 0.5)
    ).clamp(0, 1),
    "HardSwish": lambda node, inputs, graph: F.hardswish(inputs[0]),
    "Add": lambda node, inputs, graph: _tensor(inputs[0]) + _tensor(inputs[1]),
    "Mul": lambda node, inputs, graph: _tensor(inputs[0]) * _tensor(inputs[1]),
    "Concat": lambda node, inputs, graph: torch.cat(inputs, attribute(node, "axis")),
    "Split": _split,
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": lambda node, inputs, graph: inputs[0].permute(attribute(node, "perm")),
    "Flatten": lambda node, inputs, graph: inputs[0].flatten(attribute(node, "axis", 1)),
    "Squeeze": lambda node, inputs, graph: inputs[0].squeeze(_axes(inputs)),
    "Unsqueeze": lambda node, inputs, graph: inputs[0].unsqueeze(_axes(inputs)[0]),
    "Resize": _resize,
    "GlobalAveragePool": lambda node, inputs, graph: inputs[0].mean((2, 3), keepdim=True),
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
}
