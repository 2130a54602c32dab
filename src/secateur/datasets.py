"""Table of facts about the data sets that Secateur reads by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Facts about a published data set.

    Attributes:
        title: Name for people.
        channels: 1 for gray, 3 for color.
        side: Side in pixels of its square images.
        classes: Class names in the order of the labels.
        training: Number of training images; all classes have the same number.
        test: Number of test images; all classes have the same number.
        md5: From file name to the MD5 of its unpacked content.
    """

    title: str
    channels: int
    side: int
    classes: tuple[str, ...]
    training: int
    test: int
    md5: dict[str, str]

    def images(self, *, train: bool) -> int:
        """Number of images of a part."""
        return self.training if train else self.test


_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

FACTS = {
    "cifar10": Facts(
        title="CIFAR-10",
        channels=3,
        side=32,
        classes=(
            "airplane", "automobile", "bird", "cat", "deer",
            "dog", "frog", "horse", "ship", "truck",
        ),
        training=50_000,
        test=10_000,
        md5={
            "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
            "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
            "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    "fashionmnist": Facts(
        title="FashionMNIST",
        channels=1,
        side=28,
        classes=_CLOTHES,
        training=60_000,
        test=10_000,
        md5={
            "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
    ),
    "fashionmnist-mini": Facts(
        title="FashionMNIST (excerpt)",
        channels=1,
        side=28,
        classes=_CLOTHES,
        training=8_000,
        test=2_000,
        md5={
            "fashionmnist-mini/train-images-idx3-ubyte": "0bee98033e909810ecfabcc6e3075d5a",
            "fashionmnist-mini/train-labels-idx1-ubyte": "b735d12b2ed10450d1918dc24e07346b",
            "fashionmnist-mini/t10k-images-idx3-ubyte": "56b0c25812f584fe974013ec656faac8",
            "fashionmnist-mini/t10k-labels-idx1-ubyte": "4a5722b33b98fbb1e77f62e298b267c9",
        },
    ),
}  # fmt: skip
"""From the name in a recipe to facts. The published sets are those of torchvision, byte for
byte."""
