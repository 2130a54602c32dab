"""Networks from descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.errors import FileError, NetworkError
from secateur.models.networks import (
    build_described,
    fingerprint,
    load_described,
    published_preparation,
)
from secateur.models.small_resnet import small_resnet

MODULE = """
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))

def fails():
    raise RuntimeError("no weights here")

def number():
    return 3
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODULE)
    return path


def test_torchvision_with_own_classes_and_channels() -> None:
    network = build_described("torchvision:resnet18", classes=7, channels=1).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_timm_with_own_classes_and_channels() -> None:
    pytest.importorskip("timm")
    network = build_described("timm:mobilenetv4_conv_small", classes=7, channels=1).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_function_of_a_file_gets_what_it_names(module: Path) -> None:
    network = build_described(f"{module}:build", classes=5, channels=3)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "RuntimeError: no weights here"),
        ("number", "expected a torch.nn.Module, found int"),
        ("absent", "no attribute 'absent'"),
    ],
)
def test_functions_that_build_none(module: Path, function: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build_described(f"{module}:{function}", classes=5, channels=3)


def test_exported_program(tmp_path: Path) -> None:
    network, images = small_resnet().eval(), torch.zeros(2, 1, 28, 28)
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(network, (images,), dynamic_shapes=(batch,)), tmp_path / "net.pt2"
    )
    loaded = load_described(str(tmp_path / "net.pt2"), None, 10, 1)
    torch.testing.assert_close(loaded(images), network(images))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("torchvision:resnet81", "unknown network of torchvision: found resnet81; did you mean"),
        ("resnet18", "expected torchvision:NAME"),
        ("none.py:build", "no such file"),
        ("none.pt2", r"cannot read \(none.pt2\)"),
    ],
)
def test_unknown_networks(description: str, message: str) -> None:
    with pytest.raises((NetworkError, FileError), match=message):
        build_described(description, classes=10, channels=3)


def test_published_weights_need_color() -> None:
    with pytest.raises(NetworkError, match=r"expected 3 channels, found 1; give --weights|weights"):
        load_described("torchvision:resnet18", None, 10, 1)


def test_preparation_of_published_weights() -> None:
    prepare = published_preparation("torchvision:resnet18")
    assert prepare is not None
    assert (prepare.resolution, prepare.resize) == (224, 256)
    assert published_preparation("my_model.py:build") is None


def test_fingerprint_tells_weights_and_structure_apart() -> None:
    torch.manual_seed(0)
    one, other = small_resnet(), small_resnet()
    assert fingerprint(one) != fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(small_resnet(11)) != fingerprint(small_resnet(12))
