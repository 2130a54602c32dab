"""Static cost of a network: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameters(model: nn.Module) -> int:
    """Count the elements of every ``nn.Parameter``; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Count the elements of every ``nn.Parameter`` that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Count the multiply-accumulates of one input, in inference mode.

    Convolution and linear layers are counted, each as often as it is called. Biases, normalization,
    activations, pooling, attention and functional convolutions are not. Only shapes are computed,
    on the meta device.

    Args:
        model: Any network; it is not modified.
        input_shape: Shape of one input without the batch, for example ``(3, 224, 224)``.

    Example:
        >>> macs(nn.Conv2d(3, 8, 3), (3, 32, 32))  # 30 x 30 outputs x 8 channels x 27 weights
        194400
    """
    probe = copy.deepcopy(model).eval().to("meta")
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _layer_macs(layer, inputs[0], output)

    for layer in probe.modules():
        if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            layer.register_forward_hook(count)
    dtype = next((p.dtype for p in probe.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        probe(torch.empty(1, *input_shape, device="meta", dtype=dtype))
    return total


def _layer_macs(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    if isinstance(layer, _TRANSPOSED):  # each input element is multiplied by the entire kernel
        kernel = math.prod(layer.kernel_size)
        return inputs.numel() * layer.out_channels // layer.groups * kernel
    assert isinstance(layer, _CONVOLUTIONS)
    return output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
