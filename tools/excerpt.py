"""Draw the excerpt of FashionMNIST that ships in the package, from the official files.

Run: python -m tools excerpt DATA
where DATA holds FashionMNIST/raw/*-ubyte.gz. The same seed gives the same bytes.
"""

import gzip
from pathlib import Path

import numpy as np
import torch

from secateur.data import Images, load
from tools import parser

SEED = 2001_04850
PER_CLASS = {"train": 800, "t10k": 200}
TARGET = Path(__file__).parent.parent / "src/secateur/data/fashionmnist-mini"


def excerpt(images: Images, per_class: int) -> Images:
    """Draw ``per_class`` images of each class, kept in the official order."""
    generator = torch.Generator().manual_seed(SEED)
    chosen = []
    for label in range(10):
        members = torch.where(images.labels == label)[0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return images.take(torch.cat(chosen).sort().values)


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in the IDX format, gzipped without a time stamp."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=9, mtime=0))


def main(arguments: list[str]) -> None:
    """Write the four files."""
    options = parser("excerpt", __doc__)
    options.add_argument("data", type=Path)
    root = options.parse_args(arguments).data
    TARGET.mkdir(parents=True, exist_ok=True)
    for stem, per_class in PER_CLASS.items():
        part = excerpt(load("fashionmnist", root, train=stem == "train"), per_class)
        write_idx(TARGET / f"{stem}-images-idx3-ubyte.gz", part.pixels[:, 0].numpy())
        write_idx(TARGET / f"{stem}-labels-idx1-ubyte.gz", part.labels.numpy().astype(np.uint8))
