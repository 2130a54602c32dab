"""Narrow, shallow versions of the three networks, with the statistics of a network in use."""

import functools
import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.models import AlexNet, MobileNetV2, ShuffleNetV2

from secateur.onnx_ir.export import export_onnx


def shufflenet(channels=3):
    network = ShuffleNetV2([2, 1, 1], [8, 16, 32, 48, 64], num_classes=10)
    network.conv1[0] = nn.Conv2d(channels, 8, 3, stride=1, padding=1, bias=False)
    return settled(network, (channels, 28, 28))


def mobilenet(channels=3):
    settings = [[1, 16, 1, 1], [6, 24, 2, 2]]
    network = MobileNetV2(num_classes=10, inverted_residual_setting=settings)
    network.features[0][0] = nn.Conv2d(channels, 32, 3, stride=1, padding=1, bias=False)
    return settled(network, (channels, 28, 28))


def alexnet(channels=3):
    with torch.device("meta"):  # fifty million weights that nobody needs
        network = AlexNet(num_classes=10)
    widths = {0: 8, 3: 16, 6: 24, 8: 16, 10: 8}
    before = channels
    for index, width in widths.items():
        old = network.features[index]
        network.features[index] = nn.Conv2d(
            before, width, old.kernel_size, stride=old.stride, padding=old.padding
        )
        before = width
    network.classifier[1] = nn.Linear(8 * 36, 32)
    network.classifier[4] = nn.Linear(32, 32)
    network.classifier[6] = nn.Linear(32, 10)
    return settled(network, (channels, 64, 64))


def settled(network, shape):
    """Draw weights that keep a signal's size, and let the batch-norms see some images."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    with torch.no_grad():
        network.train()(images(shape, 32))
    return network.eval()


def images(shape, count, seed=1):
    """Smooth, normalized random images: a photograph is not white noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, shape[1:], mode="bilinear")


NETWORKS = {
    "shufflenet": (shufflenet, (3, 28, 28)),
    "mobilenet": (mobilenet, (3, 28, 28)),
    "alexnet": (alexnet, (3, 64, 64)),
}


def exported(name, path):
    """Write one of NETWORKS to ``path`` as ONNX, exported once in a process; return its shape."""
    path.write_bytes(_exported(name))
    return NETWORKS[name][1]


@functools.cache
def _exported(name):
    make, shape = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(make(), shape, Path(folder) / "f.onnx", {})
        return (Path(folder) / "f.onnx").read_bytes()
