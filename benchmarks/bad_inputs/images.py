"""Bad images, folders of images, and files of published data sets."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bad_inputs.case import ACCEPTED, Case, Content

ROOT = Path(__file__).parents[2]
NETWORK = (ROOT / "results" / "quickstart" / "net.sec").read_bytes()
IMAGES, FOLDERS, OFFICIAL = "Images", "Folders of images", "Files of published data sets"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(side: int = 12, seed: int = 0) -> bytes:
    """A valid image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def _picture() -> Image.Image:
    """The first test image of the excerpt."""
    file = resources.files("secateur.data") / "fashionmnist-mini" / "t10k-images-idx3-ubyte.gz"
    pixels = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, 28 * 28, 16)
    return Image.fromarray(pixels.reshape(28, 28))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _huge() -> bytes:
    """A PNG whose header says 2^30 x 2^30 pixels."""
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + struct.pack(">I", 0) + b"IDAT"


def _text_bomb() -> bytes:
    """A PNG with 100 MB of compressed text."""
    good = png()
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))
    return good[:33] + text + good[33:]


def _same() -> Iterator[tuple[str, bytes]]:
    """The picture in other formats, which must be classified alike."""
    gray = _picture()
    deep = Image.fromarray((np.asarray(gray).astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    opaque = gray.convert("RGBA")
    yield "16 bits", encoded(deep)
    yield "turned, with an EXIF orientation", encoded(gray.rotate(90), exif=exif)
    yield "CMYK", encoded(gray.convert("CMYK"), "JPEG", quality=100)
    yield "with alpha", encoded(opaque)
    yield "with a palette", encoded(gray.quantize(256))


_COMPARE = """
import json, subprocess, sys
command = [sys.executable, "-m", "secateur", "predict", "net.sec", "plain.png", "odd.png", "--json"]
out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
one, other = (json.loads(line)["classes"][0] for line in out.splitlines())
print(one, other)
sys.exit(one["name"] != other["name"] or abs(one["probability"] - other["probability"]) > 0.05)
"""


def images() -> Iterator[Case]:
    """Files given to ``predict``."""
    plain = encoded(_picture())
    for name, data in _same():
        files: dict[str, Content] = {"net.sec": NETWORK, "plain.png": plain, "odd.png": data}
        yield Case(
            IMAGES, f"{name}: same class as the plain image", ("-c", _COMPARE), files, ends=ACCEPTED
        )
    frames = [Image.new("L", (9, 9), value) for value in (0, 9)]
    for name, content, message in (
        ("a header of 2^30 x 2^30 pixels", _huge(), "image too large"),
        ("400 megapixels in 50 kB", encoded(Image.new("1", (20_000, 20_000))), "too large"),
        ("100 MB of compressed text", _text_bomb(), "cannot read image"),
        ("cut", png()[:-60], "cannot read image"),
        ("empty", b"", "cannot read image"),
        ("no image", b"hello", "cannot read image"),
        ("float pixels", encoded(Image.new("F", (9, 9)), "TIFF"), "float pixels"),
        ("two frames", encoded(frames[0], save_all=True, append_images=frames[1:]), "frames"),
        ("a GIF", encoded(frames[0], "GIF"), "another format"),
        ("a FIFO", os.mkfifo, "regular file"),
        ("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"), "regular file"),
        ("a folder without images", Path.mkdir, "no image files"),
    ):
        files = {"net.sec": NETWORK, "x.png": content}
        yield Case(IMAGES, name, ("predict", "net.sec", "x.png"), files, message)
    odd = {"net.sec": NETWORK, "=1+1.png": plain}
    command = ("predict", "net.sec", "=1+1.png", "--csv")
    yield Case(IMAGES, "a name that is a formula, as CSV", command, odd, "'=1", ACCEPTED)
    code = (
        "import sys, numpy, torch, secateur; from PIL import Image;"
        "net = secateur.load('net.sec'); image = Image.open('x.png');"
        "kinds = ['x.png', image, torch.zeros(28, 28, 1, dtype=torch.uint8),"
        " numpy.zeros((28, 28, 1), numpy.uint8), (path for path in ['x.png'])];"
        "sys.exit([len(net(kind)) for kind in kinds] != [1] * 5)"
    )
    kinds = {"net.sec": NETWORK, "x.png": plain}
    name = "path, Pillow image, tensor, (28, 28, 1), generator: one image each"
    yield Case(IMAGES, name, ("-c", code), kinds, ends=ACCEPTED)


# ---- folders

TINY = """
name = "tiny"
data = { name = "folder", validation = 0.25 }
network = { name = "shufflenet_v2_x1_0", resolution = 16 }
train = { epochs = 1, batch_size = 8, learning_rate = 0.05 }
scan = { fractions = [0.5], layer_fractions = [0.5] }
prune = { rounds = 1, epochs = 1 }
quantize = { images = 8 }
bench = { threads = 1, warmup = 1, repeats = 3 }
"""
TRAIN = ("train", "tiny.toml", "--data", "images", "--out", "runs")


def folder_files(
    names: tuple[str, ...] = ("a", "b"), parts: tuple[str, ...] = ("train", "test"), count: int = 4
) -> dict[str, Content]:
    """A recipe and its images."""
    made: dict[str, Content] = {"tiny.toml": TINY}
    for part in parts:
        for name in names:
            made |= {f"images/{part}/{name}/{i}.png": png(16, len(made) + i) for i in range(count)}
    return made


def folders() -> Iterator[Case]:
    """Folders given to ``train``."""
    good, few = folder_files(), folder_files(parts=("train",))
    some = {f"images/test/a/{i}.png": png(16, i) for i in range(4)}
    control, latin = "\x1b[31mred\x07", os.fsdecode(b"caf\xe9")
    extra: dict[str, dict[str, Content]] = {
        "image": {"images/train/a/9.png": b"no image"},
        "huge": {"images/train/a/0.png": _huge()},
        "fifo": {"images/train/a/9.png": os.mkfifo},
        "loop": {"images/train/a/up": lambda path: path.symlink_to("..")},
    }
    for name, files, message, ends in (
        ("a class is missing in test/", few | some, "classes differ", ""),
        ("test/ is missing", few, "no test images", ""),
        ("a class without images", good | {"images/train/c": Path.mkdir}, "without images", ""),
        ("no images at all", {"tiny.toml": TINY, "images": Path.mkdir}, "no classes", ""),
        ("one image in a class", folder_files(count=1), "too few images", ""),
        ("a class name that is not UTF-8", folder_files((latin, "b")), "not UTF-8", ""),
        ("a class name with control characters", folder_files((control, "b")), "", ACCEPTED),
        ("a file that is no image", good | extra["image"], "cannot read image", ""),
        ("a first image with a header of 2^30 x 2^30", good | extra["huge"], "too large", ""),
        ("a FIFO between the images", good | extra["fifo"], "", ACCEPTED),
        ("a link to the folder above", good | extra["loop"], "", ACCEPTED),
        ("no such folder", {"tiny.toml": TINY}, "no such", ""),
    ):
        yield Case(FOLDERS, name, TRAIN, files, message, ends or "rejected")
    code = f"{_LOADERS}labels += 5;{_COMPRESS}"
    yield Case(FOLDERS, "a DataLoader with labels out of range", ("-c", code), {}, "classes")
    code = f"{_LOADERS}images[:, 0, 0, 0] = float('nan');{_COMPRESS}"
    yield Case(FOLDERS, "a DataLoader whose images hold NaN", ("-c", code), {}, "NaN|finite")
    code = f"{_LOADERS}images, labels = images[:0], labels[:0];{_COMPRESS}"
    yield Case(FOLDERS, "a DataLoader without images", ("-c", code), {}, "images")


_LOADERS = """
import sys, torch, secateur
from torch import nn
torch.set_num_threads(1)
labels = torch.arange(64) % 2
images = torch.randn(64, 1, 8, 8) + labels.view(-1, 1, 1, 1)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                      nn.Flatten(), nn.Linear(4, 2))
"""
_COMPRESS = """
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 16)
try:
    secateur.compress(model, train=loader, validation=loader, test=loader, out="out")
except secateur.SecateurError as error:
    print(f"secateur: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


# ---- published data sets


def official() -> Iterator[Case]:
    """Files in place of the official ones."""
    mini = resources.files("secateur.data") / "fashionmnist-mini"
    labels = (mini / "train-labels-idx1-ubyte.gz").read_bytes()
    raw = "data/FashionMNIST/raw/train-labels-idx1-ubyte.gz"

    def recipe(name: str) -> str:
        return TINY.replace('"folder"', f'"{name}"')

    command = ("train", "tiny.toml", "--data", "data", "--out", "runs")
    for name, content, message in (
        ("other labels", labels, "not the official file"),
        ("cut", labels[:-100], "corrupt"),
        (
            "one bit flipped",
            labels[:500] + bytes([labels[500] ^ 1]) + labels[501:],
            "corrupt|not t",
        ),
        ("a bomb: 1 GiB of zeros in 1 MB", gzip.compress(bytes(2**30), 1), "not the official"),
        ("a FIFO", os.mkfifo, "not a regular file"),
    ):
        files = {"tiny.toml": recipe("fashionmnist"), raw: content}
        yield Case(OFFICIAL, f"FashionMNIST: {name}", command, files, message)
    pickled = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]})
    files = {
        "tiny.toml": recipe("cifar10"),
        "data/cifar-10-batches-py/data_batch_1": pickled,
    }
    yield Case(OFFICIAL, "CIFAR-10: another pickle", command, files, "not the official file")
