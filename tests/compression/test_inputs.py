"""What a user names becomes a problem."""

from __future__ import annotations

from pathlib import Path

import torch

from secateur.compression.inputs import Inputs, read_problem

NETWORK = """
from importlib import resources

from secateur.models.small_resnet import small_resnet
from secateur.models.weight_files import load_weights, read_weights

def build(num_classes):
    network = small_resnet(num_classes)
    path = resources.files("secateur.models") / "small_resnet.safetensors"
    load_weights(network, read_weights(path), "small_resnet")
    return network
"""


def test_the_name_of_a_network_holds_no_folder(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    inputs = Inputs(network=f"{tmp_path / 'net.py'}:build")
    assert read_problem(inputs, torch.device("cpu")).name == "net.py:build"
