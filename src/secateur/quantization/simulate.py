"""Simulation of a quantized graph in PyTorch, with real tensors rounded as in the file.

The exported float graph runs node by node, so that training and measurements apply to the exported
graph. Rounding uses affine.py. Sums are float32 where a runtime uses int32, and requantization
divides where a runtime multiplies, so that results may differ by one step if a value is close to a
half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.onnx_ir.model import Graph
from secateur.quantization.affine import Affine
from secateur.quantization.placement import Placement
from secateur.quantization.scheme import Layer, Scheme, weighted_nodes
from secateur.quantization.torch_operators import OPERATORS

Values = dict[str, Tensor]


def unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Sorted operators of ``model`` that cannot be simulated, and a fixed batch size."""
    unknown = {node.op_type for node in model.graph.node} - OPERATORS.keys()
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return sorted(unknown) + ([f"for batch {batch} only"] if batch else [])


class Simulated(nn.Module):
    """A float graph of ``export_onnx`` as a PyTorch network, rounded by a scheme.

    Args:
        model: The float graph.
        scheme: The scheme; None computes the float graph.

    Attributes:
        weights: From node to the rounded weight of each convolution and linear layer.
        biases: From node to the rounded bias.
        quantizers: From tensor to its quantizer; tensors of a group share one.

    Raises:
        SecateurError: An operator of the graph cannot be simulated; the message names it.
    """

    def __init__(self, model: onnx.ModelProto, scheme: Scheme | None = None) -> None:
        super().__init__()
        self.graph = Graph(model)
        self.nodes = self.graph.nodes
        for node in self.nodes:
            if node.op_type not in OPERATORS:
                raise SecateurError(
                    "an operator that the simulation does not know",
                    where=f"node {node.name}",
                    found=node.op_type,
                    expected=", ".join(sorted(OPERATORS)),
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
        """Use another ``scheme``."""
        self._shared, self.quantizers = nn.ModuleList(), {}
        self._placement = scheme.placement
        for group in scheme.placement.groups:
            quantizer = Quantizer(scheme.activations[group[0]])
            self._shared.append(quantizer)
            self.quantizers |= dict.fromkeys(group, quantizer)
        for name, layer in scheme.layers.items():
            self.set_layer(name, layer)

    def set_layer(self, name: str, layer: Layer) -> None:
        """Set weight and bias of a node to the real values of ``layer``."""
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
        """The values before the first node: the rounded images."""
        name = self.graph.inputs[0]
        return {name: self._result(name, images)}

    def walk(self, values: Values, first: int = 0) -> Iterator[onnx.NodeProto]:
        """Run the nodes from index ``first``, yielding each before it runs.

        Between steps, ``values`` maps names to the tensors that later nodes read.
        """
        for number in range(first, len(self.nodes)):
            node = self.nodes[number]
            yield node
            self._run(node, values)
            for name in node.input:
                if self._last_use.get(name) == number and name not in self.graph.outputs:
                    values.pop(name, None)

    def branch(self, values: Values, number: int, weight: Tensor) -> Tensor:
        """Return logits from node ``number`` on ``values``, with another weight of that node."""
        name, ahead = self.nodes[number].name, dict(values)
        kept, self.weights[name].data = self.weights[name].data, weight
        for _ in self.walk(ahead, number):
            pass
        self.weights[name].data = kept
        return ahead[self.graph.outputs[0]]

    def layer_output(self, node: onnx.NodeProto, x: Tensor, weight: Tensor) -> Tensor:
        """Output of a convolution or linear layer for ``x`` with ``weight`` and no bias."""
        return OPERATORS[node.op_type](node, [x, weight], self.graph)

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
        results = OPERATORS[node.op_type](node, inputs, self.graph)
        if isinstance(results, Tensor):
            results = (results,)
        for name, result in zip(node.output, results, strict=True):
            values[name] = self._result(name, result)

    def parameters_of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Current weight and bias of node ``name``."""
        return self.weights[name], self.biases.get(name)

    def read(self, values: Values, node: onnx.NodeProto, index: int = 0) -> Tensor:
        """Input ``index`` of ``node``, rounded unless ``node`` reads it unrounded."""
        name = node.input[index]
        rounds = name in self._placement.unrounded
        if rounds and not self._placement.reads_unrounded(node, name):
            return self.quantizers[name](values[name])
        return values[name]

    def _result(self, name: str, value: Tensor) -> Tensor:
        """Stored form of a new tensor: rounded, unless some node reads it unrounded."""
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
