"""Reads the user's inputs: images, a network, and the image preparation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.compression.loaders import UserLoop
from secateur.compression.onnx_network import (
    OnnxNetwork,
    file_of_program,
    is_file,
    preparation_of_file,
)
from secateur.compression.parts import (
    EXCERPT,
    Parts,
    excerpt,
    kind_of,
    loaders,
    one_folder,
    three_folders,
)
from secateur.compression.problem import Problem
from secateur.compression.verdict import guesses
from secateur.data import Images, Preparation
from secateur.data.listing import list_folder
from secateur.errors import DataError, NetworkError, RecipeError
from secateur.imaging import read_size
from secateur.models.networks import load_described, published_preparation
from secateur.models.small_resnet import small_resnet
from secateur.models.weight_files import load_weights, read_weights
from secateur.training.evaluation import correctness

SHIPPED = "small_resnet"
"""The trained network inside the package."""

_IMAGENET = Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 256)
THREADS = 2
"""Threads inside one operator when a file is evaluated."""

SAMPLE = 500
"""Number of validation images on which the given network must be better than chance."""

_SAMPLED = 50  # image files whose size is read


@dataclass(frozen=True)
class Inputs:
    """The inputs that a user names.

    Attributes:
        network: See :func:`secateur.models.networks.build_described`; or the network in the
            package.
        weights: File with the network's weights.
        data: Folder of images; None for the excerpt inside the package.
        image_size: Side in pixels of the square input; by default the network's own.
        resize: Length in pixels of the shorter side before the crop.
        mean: Per channel, in units of [0, 1]; by default the network's own.
        std: Per channel, in units of [0, 1]; by default the network's own.
        seed: Seed of the split.
    """

    network: str = SHIPPED
    weights: Path | None = None
    data: Path | None = None
    image_size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0


def read_problem(
    inputs: Inputs,
    device: torch.device,
    network: nn.Module | None = None,
    named: Mapping[str, Any] | None = None,
    loop: UserLoop = UserLoop(),
) -> Problem:
    """Read the images and the network.

    The network is tested on a sample. All images are decoded when they are first used, because
    that may take long.

    Args:
        inputs: The inputs to read.
        device: Device for training.
        network: Replaces the network that ``inputs`` names.
        named: ``train``, ``validation`` and ``test``, in place of the folder of ``inputs``.
        loop: The user's own training step and evaluation.

    Raises:
        SecateurError: An input is missing, or inputs contradict each other.
    """
    parts, prepare = _images(inputs, network is not None, named or {}, loop)
    if network is None:
        network = _network(inputs, len(parts.classes), prepare)
    if not is_file(network):
        network = network.to(device=device).to(memory_format=torch.channels_last).eval()
    sample = parts.sample(SAMPLE).to(device)
    accuracy = _checked_accuracy(network, prepare, sample)
    return Problem(
        name=Path(inputs.network).name,  # reports and packed files tell no folder of this machine
        data_name=inputs.data.name if inputs.data else ("loaders" if named else EXCERPT),
        network=network,
        sample=sample,
        counts=parts.counts,
        read=parts.read,
        test=parts.test,
        test_images=parts.test_images,
        prepare=prepare,
        device=device,
        accuracy=accuracy,
        report=parts.report,
        loop=parts.loop,
    )


def _images(
    inputs: Inputs, own: bool, named: Mapping[str, Any], loop: UserLoop
) -> tuple[Parts, Preparation]:
    """Return the images and their preparation."""
    kind = kind_of(named)
    if kind == "loaders":
        known = None
        if inputs.mean is not None:
            known = _adjusted(_IMAGENET, inputs)
        return loaders(replace(loop, loader=named["train"], parts=dict(named)), named, known)
    root = Path(named["train"]) if kind == "one folder" else inputs.data
    if kind == "three folders":
        folders = {part: Path(value) for part, value in named.items()}
        prepare = preparation(inputs, folders["train"], own)
        parts = three_folders(folders, prepare)
    elif root is not None:
        prepare = preparation(inputs, root, own)
        parts = one_folder(root, prepare, inputs.seed)
    else:
        parts, advice = excerpt(inputs.seed)
        prepare = _adjusted(advice, inputs)
    return replace(parts, loop=loop), prepare


def preparation(inputs: Inputs, root: Path, own: bool) -> Preparation:
    """Return the preparation of a folder's images: the user's, else that of the published weights.

    Other networks get the mean and standard deviation of ImageNet. Their input size is that of the
    images if all are squares of one size, else 224 pixels.

    Args:
        inputs: The user's inputs.
        root: Folder of images.
        own: Whether the network is a module.
    """
    advice = None if own else published_preparation(inputs.network)
    if advice is None:
        side = _common_side(root)
        advice = _IMAGENET if side is None else replace(_IMAGENET, resolution=side, resize=None)
    if inputs.network.endswith(".onnx"):
        advice = preparation_of_file(Path(inputs.network), advice)
    return _adjusted(advice, inputs)


def _adjusted(prepare: Preparation, inputs: Inputs) -> Preparation:
    """Apply the user's overrides to a preparation."""
    if inputs.image_size is not None:
        prepare = prepare.at(inputs.image_size)
    if inputs.resize is not None:
        prepare = replace(prepare, resize=inputs.resize)
    if (inputs.mean is None) != (inputs.std is None):
        raise RecipeError("mean and std go together", where="--mean, --std")
    if inputs.mean is not None and inputs.std is not None:
        prepare = replace(prepare, mean=inputs.mean, std=inputs.std)
    return prepare


def _common_side(root: Path) -> int | None:
    """The side of the images if a sample of them are squares of one size."""
    files = [path for path, _ in list_folder(root).files["train"]]
    sizes = set()
    for path in files[:: max(1, len(files) // _SAMPLED)]:
        try:
            sizes.add(read_size(path))
        except DataError:
            return None  # the error is raised when the image is decoded
    sides = {side for size in sizes for side in size}
    return sides.pop() if len(sides) == 1 else None


def _network(inputs: Inputs, classes: int, prepare: Preparation) -> nn.Module:
    channels = prepare.channels
    if inputs.network.endswith((".onnx", ".pt2")):
        return _file(inputs, prepare)
    if inputs.network != SHIPPED:
        return load_described(inputs.network, inputs.weights, classes, channels)
    network = small_resnet(classes, channels)
    if inputs.weights is not None:
        load_weights(network, read_weights(inputs.weights), inputs.weights)
        return network
    file = resources.files("secateur.models") / f"{SHIPPED}.safetensors"
    with resources.as_file(file) as path:
        load_weights(network, read_weights(path), SHIPPED)
    return network


def _file(inputs: Inputs, prepare: Preparation) -> nn.Module:
    if inputs.weights is not None:
        raise RecipeError("a file that has its weights", where="--weights", found=inputs.weights)
    path = Path(inputs.network)
    if path.suffix == ".onnx":
        return OnnxNetwork(path, prepare, THREADS)
    with tempfile.TemporaryDirectory() as folder:
        return OnnxNetwork(file_of_program(path, Path(folder) / "net.onnx"), prepare, THREADS)


def _checked_accuracy(network: nn.Module, prepare: Preparation, images: Images) -> float:
    """Return the network's accuracy on some images, in [0, 1].

    Raises:
        NetworkError: It does not run on the images, or has another number of outputs.
        DataError: It is not better than chance.
    """
    _check_outputs(network, prepare, images)
    right, classes = correctness(network, images, prepare), len(images.classes)
    if guesses(right, classes):
        raise DataError(
            "the given network guesses", where=f"{len(right)} validation images",
            expected=f"more than {100 / classes:.1f} % right, which is chance",
            found=f"{100 * right.mean():.1f} %",
            remedy="check the weights, the classes' order, --image-size, --mean and --std",
        )  # fmt: skip
    return float(right.mean())


@torch.inference_mode()
def _check_outputs(network: nn.Module, prepare: Preparation, images: Images) -> None:
    try:
        scores = network(prepare(images.pixels[:1]))
    except Exception as error:  # the network's code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NetworkError(
            "the network does not run on the images", found=reason,
            expected=f"input (N, {prepare.channels}, {prepare.resolution}, {prepare.resolution})",
            remedy="check --image-size, and the channels by --mean and --std",
        ) from error  # fmt: skip
    classes = len(images.classes)
    if not isinstance(scores, torch.Tensor) or scores.shape != (1, classes):
        raise NetworkError(
            "the network has other outputs than the data has classes",
            expected=f"scores (N, {classes})",
            found=tuple(getattr(scores, "shape", ())) or type(scores).__name__,
        )
