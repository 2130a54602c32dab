"""Curvature of the loss at each layer's outputs, to estimate the cost of errors.

An error e at output channel i is expected to cost G_i E[e^2] / 2 nats, where G_i is the mean over
images of the sum over positions of the squared gradient of the loss: the Fisher information, with
channels and positions taken as independent (Martens & Grosse 2015, section 3.1; Grosse & Martens
2016, section 3.1, for convolutions). Labels are sampled from the network's own probabilities, as in
the definition of the Fisher information; true labels are not needed.

In fact positions are not independent, because an error of a weight affects all of them. The effect
is measured layer by layer: the layer's weight is rounded to few bits, and G is scaled to predict
the resulting divergence of the network's outputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.quantization.scheme import weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule, choose_scales

_BATCH = 64

_PROBED = 256
"""Number of images for measuring divergences, which vary far less than losses."""

_PROBE_BITS = 4


@torch.enable_grad()
def output_curvature(
    model: onnx.ModelProto, images: Tensor, seed: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Return G, shape (output channels,), for the name of each convolution and linear layer.

    Args:
        model: The float graph.
        images: Normalized float32 (N, C, R, R).
        seed: Seed of the sampled labels.

    Raises:
        SecateurError: An operator of the graph cannot be simulated.
    """
    network, generator = Simulated(model), torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    for batch in images.split(_BATCH):
        outputs, logits = layer_outputs(network, batch.clone().requires_grad_())
        labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(outputs.values()))
        for name, gradient in zip(outputs, gradients, strict=True):
            others = [axis for axis in range(gradient.ndim) if axis != 1]
            sums[name] = sums.get(name, torch.zeros(())) + gradient.square().sum(others)
    curvature = {name: (total / len(images)).numpy() for name, total in sums.items()}
    factors = _measured_to_foretold(network, images[:_PROBED], curvature)
    return {name: np.float32(factors[name]) * known for name, known in curvature.items()}


@torch.no_grad()
def _measured_to_foretold(
    network: Simulated, images: Tensor, curvature: dict[str, npt.NDArray[np.float32]]
) -> dict[str, float]:
    """For each layer, the measured over the predicted divergence after rounding."""
    errors = {}
    for node in weighted_nodes(network.graph):
        weight = network.graph.constant(node.input[1])
        affine = choose_scales(weight, WeightRule(_PROBE_BITS))
        errors[node.name] = torch.from_numpy(affine.dequantize(affine.quantize(weight)) - weight)
    measured, foretold = dict.fromkeys(errors, 1e-12), dict.fromkeys(errors, 1e-12)
    for batch in images.split(_BATCH):
        values, answers = network.start(batch), {}
        for number, node in enumerate(network.walk(values)):
            if (error := errors.get(node.name)) is None:
                continue
            answers[node.name] = network.branch(values, number, network.weights[node.name] + error)
            moved = network.layer_output(node, network.read(values, node), error).square()
            others = [axis for axis in range(moved.ndim) if axis != 1]
            by_row = moved.mean(others).numpy() * len(batch)
            foretold[node.name] += float(by_row @ curvature[node.name]) / 2
        truth = values[network.graph.outputs[0]].log_softmax(1)
        for name, answer in answers.items():
            divergence = F.kl_div(answer.log_softmax(1), truth, reduction="sum", log_target=True)
            measured[name] += float(divergence)
    return {name: measured[name] / foretold[name] for name in errors}


def layer_outputs(network: Simulated, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The output of each layer with a weight, and the logits."""
    values, outputs = network.start(images), dict[str, Tensor]()
    before: onnx.NodeProto | None = None
    for node in network.walk(values):
        if before is not None and before.name in network.weights:
            outputs[before.name] = values[before.output[0]]
        before = node
    logits = values[network.graph.outputs[0]]
    if before is not None and before.name in network.weights:
        outputs[before.name] = logits
    return outputs, logits
