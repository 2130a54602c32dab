"""Train the network that ships with the package, on the built-in excerpt of FashionMNIST.

Run: python -m tools small_resnet
It writes src/secateur/models/small_resnet.safetensors. Validation images, a fifth of the training
images drawn with seed 0, are held out, since `secateur compress` chooses by them. The test images
are not read.
"""

import tempfile
from pathlib import Path

import torch

from secateur import recipe
from secateur.data import Preparation, load, normalization, split
from secateur.models.small_resnet import small_resnet
from secateur.store import save_tensors
from secateur.training.cpu import keep_freed_memory
from secateur.training.loop import train
from tools import parser

TARGET = Path(__file__).parent.parent / "src/secateur/models/small_resnet.safetensors"
CONFIG = recipe.Train(
    epochs=40,
    batch_size=64,
    learning_rate=0.1,
    label_smoothing=0.1,
    ema=0.998,
    augment=recipe.Augment(flip=True, crop=2, cutout=8),
)


def main(arguments: list[str]) -> None:
    """Train and write the weights."""
    parser("small_resnet", __doc__).parse_args(arguments)
    keep_freed_memory()
    images = load("fashionmnist-mini", None, train=True)
    training, validation = (images.take(part) for part in split(images.labels, 0.2, 0))
    mean, std = normalization(training, "dataset")
    torch.manual_seed(0)
    network = small_resnet().to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        kept, _ = train(
            network, training, validation, Preparation(mean, std, 28), CONFIG,
            seed=0, checkpoint=checkpoint,
        )  # fmt: skip
    save_tensors(TARGET, kept.state_dict())
