"""The images of a compression: of the package, of folders, or of a user's loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from secateur.compression.loaders import Prepared, UserLoop, collect, normalization_of
from secateur.data import Images, Preparation, load, load_folder, normalization, split
from secateur.data.listing import list_folder
from secateur.data.pixel_store import MEMORY_LIMIT, ImageFiles, load_pixels
from secateur.errors import DataError, RecipeError
from secateur.imaging import PIXEL_LIMIT

EXCERPT = "fashionmnist-mini"
"""Name of the data set in the package."""

VALIDATION = 0.2
"""Fraction of the training images held out for validation if there is no such folder."""

COLLECTED = 32
"""Number of batches of a training loader kept in memory for calibration."""

_EXCERPT_TEST_IMAGES = 2000


@dataclass(frozen=True, eq=False)
class Parts:
    """The images of a compression.

    Attributes:
        classes: Class names in the order of the labels.
        counts: From ``training`` and ``validation`` to the number of images of each class.
        sample: Reads at most that number of validation images.
        read: Reads the images for fine-tuning and calibration, and those for all choices.
        test: Reads the test images.
        test_images: Number of test images; 0 if not known in advance.
        report: Lines that describe the images.
        loop: The user's own training step and evaluation.
    """

    classes: tuple[str, ...]
    counts: Mapping[str, Sequence[int]]
    sample: Callable[[int], Images]
    read: Callable[[], tuple[Images, Images]]
    test: Callable[[], Images]
    test_images: int
    report: tuple[str, ...] = ()
    loop: UserLoop = field(default_factory=UserLoop)


def excerpt(seed: int) -> tuple[Parts, Preparation]:
    """The excerpt of FashionMNIST in the package, with its own mean and standard deviation."""
    images = load(EXCERPT, None, train=True)
    training, validation = (images.take(part) for part in split(images.labels, VALIDATION, seed))
    mean, std = normalization(training, "dataset")
    parts = Parts(
        training.classes,
        _counts(training, validation),
        validation.spread,
        lambda: (training, validation),
        lambda: load(EXCERPT, None, train=False),
        _EXCERPT_TEST_IMAGES,
    )
    return parts, Preparation(mean, std, training.pixels.shape[-1])


def one_folder(root: Path, prepare: Preparation, seed: int) -> Parts:
    """The images of one folder with parts or classes."""
    folder = load_folder(root, prepare, validation=VALIDATION, seed=seed)
    return Parts(
        folder.classes,
        folder.counts(),
        folder.sample,
        lambda: (folder.training, folder.validation),
        lambda: folder.test,
        folder.test_images,
        folder.report,
    )


def three_folders(folders: Mapping[str, Path], prepare: Preparation) -> Parts:
    """The images of one folder for each part, all with the same classes.

    Raises:
        DataError: The classes of the parts differ.
    """
    listings = {part: list_folder(root) for part, root in folders.items()}
    classes = listings["train"].classes
    for part, listing in listings.items():
        if listing.classes != classes:
            different = sorted(set(classes) ^ set(listing.classes))
            raise DataError(
                "classes that differ from those of training", where=folders[part],
                found=", ".join(different[:3]),
            )  # fmt: skip

    def images(part: str, count: int | None = None) -> Images:
        listing = listings[part]
        files = ImageFiles(listing.root, listing.files["train"], prepare, PIXEL_LIMIT)
        files = files if count is None else files.spread(count)
        pixels, _ = load_pixels(files, MEMORY_LIMIT, None)
        return Images(pixels, files.labels, classes)

    return Parts(
        classes,
        {
            "training": listings["train"].counts("train"),
            "validation": listings["validation"].counts("train"),
        },
        lambda count: images("validation", count),
        lambda: (images("train"), images("validation")),
        lambda: images("test"),
        len(listings["test"].files["train"]),
    )


def loaders(
    loop: UserLoop, named: Mapping[str, Any], known: Preparation | None
) -> tuple[Parts, Preparation]:
    """The prepared images of a user's loaders.

    Args:
        loop: Has the training loader.
        named: ``validation`` and ``test`` loaders.
        known: Image preparation of the loaders, if the user states it.

    Raises:
        DataError: A loader yields other data.
    """
    assert loop.loader is not None
    validation = collect(named["validation"], None, "validation")
    training = collect(islice(iter(loop.loader), COLLECTED), validation.classes, "train")
    channels, side, width = validation.pixels.shape[1:]
    if side != width:
        raise DataError(
            "images that are not square", where="validation", found=f"{side} x {width} pixels"
        )
    stated = normalization_of(loop.loader)
    if known is None and stated is not None:
        known = Preparation(*stated, resolution=side)
    test = named["test"]
    dataset = getattr(test, "dataset", None)
    count = len(dataset) if isinstance(dataset, Sized) else 0
    parts = Parts(
        validation.classes,
        _counts(training, validation),
        validation.spread,
        lambda: (training, validation),
        lambda: collect(test, validation.classes, "test"),
        count,
        loop=loop,
    )
    return parts, cast(Preparation, Prepared(channels, side, known))


def _counts(training: Images, validation: Images) -> dict[str, list[int]]:
    """Number of images of each class."""
    parts = {"training": training, "validation": validation}
    return {
        part: images.labels.bincount(minlength=len(images.classes)).tolist()
        for part, images in parts.items()
    }


def kind_of(named: Mapping[str, Any]) -> str:
    """Classify a user's parts as ``none``, ``one folder``, ``three folders`` or ``loaders``.

    Args:
        named: ``train``, ``validation`` and ``test``.

    Raises:
        RecipeError: The combination is not supported.
    """
    present = {part: value for part, value in named.items() if value is not None}
    if not present:
        return "none"
    are_paths = {isinstance(value, str | Path) for value in present.values()}
    if are_paths == {True} and set(present) == {"train"}:
        return "one folder"
    if len(are_paths) == 1 and len(present) == len(named):
        return "three folders" if are_paths == {True} else "loaders"
    raise RecipeError(
        "parts that do not go together", where="train, validation, test",
        expected="one folder as train, or three folders, or three loaders",
        found=", ".join(f"{part}: {type(value).__name__}" for part, value in present.items()),
    )  # fmt: skip
