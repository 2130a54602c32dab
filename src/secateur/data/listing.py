"""Lists the image files of a folder by part and class, without opening them.

Two layouts are read:

    ROOT/train/CLASS/*.png, and ROOT/val/, ROOT/test/ or both in the same form
    ROOT/CLASS/*.png                      one level of classes

Class names and their order are those of the training part, sorted; every other part must have
exactly the same. Files of a class may lie in folders inside it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secateur.errors import DataError
from secateur.escaping import printable
from secateur.imaging import SUFFIXES
from secateur.wording import counted

PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""From part to the accepted names of its folder."""


@dataclass(frozen=True)
class Listing:
    """The image files of a folder.

    Attributes:
        root: The folder.
        classes: Class names in the order of the labels.
        files: From part (``train``, ``val``, ``test``) to files with labels, sorted by class and
            path. A single level of classes is ``train``.
        skipped: From reason to the number of skipped files.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    skipped: dict[str, int]

    def counts(self, part: str) -> list[int]:
        """Number of images of each class in a part, in the order of the classes."""
        labels = Counter(label for _, label in self.files.get(part, []))
        return [labels[label] for label in range(len(self.classes))]

    def report(self) -> Iterator[str]:
        """Yield lines that describe the images and those that were skipped."""
        for part in self.files:
            counts = self.counts(part)
            yield (
                f"{part}: {counted(sum(counts), 'image')} of "
                f"{counted(len(counts), 'class', 'classes')}, "
                f"{min(counts):,} to {max(counts):,} each"
            )
        if self.skipped:
            yield "skipped: " + ", ".join(f"{n:,} x {what}" for what, n in self.skipped.items())


def list_folder(root: Path) -> Listing:
    """List the images of a folder.

    Raises:
        DataError: There is no training image, a class name is not UTF-8, or the classes of a part
            differ from those of training.
    """
    if not root.is_dir():
        raise DataError("no such image folder", where=root)
    skipped = Counter[str]()
    parts = _parts(root, {entry.name: Path(entry.path) for entry in _folders(root, skipped)})
    images = {part: _classes(folder, skipped) for part, folder in parts.items()}
    training = images["train"]
    for name, inside_class in training.items():
        if not inside_class:
            raise DataError(
                "a class without images",
                where=parts["train"] / name,
                expected=f"files ending in {', '.join(sorted(SUFFIXES))}",
                remedy="add images, or remove the folder",
            )
    if not training:
        raise DataError(
            "no classes", where=parts["train"], expected="a folder of images for each class"
        )
    for part, classes in images.items():
        _compare(parts[part], list(training), classes)
    files = {
        part: [(path, label) for label, name in enumerate(training) for path in classes[name]]
        for part, classes in images.items()
    }
    return Listing(root, tuple(training), files, dict(sorted(skipped.items())))


def _parts(root: Path, inside: dict[str, Path]) -> dict[str, Path]:
    """From part to its folder."""
    parts = {}
    for part, names in PARTS.items():
        existing = [name for name in names if name in inside]
        if len(existing) > 1:
            raise DataError("two folders for one part", where=root, found=" and ".join(existing))
        if existing:
            parts[part] = inside[existing[0]]
    if parts.keys() == {"train"}:
        raise DataError(
            "no test images",
            where=root,
            expected="test/CLASS/* or val/CLASS/* beside train/CLASS/*, or CLASS/* alone",
            found="train/ alone",
        )
    if "train" in parts:
        return parts
    if parts and len(parts) == len(inside):
        raise DataError(
            "no training images", where=root, expected="train/CLASS/*.png", found=", ".join(inside)
        )
    return {"train": root}


def _classes(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """From class name to its files, both sorted."""
    classes = {}
    for entry in sorted(_folders(folder, skipped), key=lambda entry: entry.name):
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise DataError(
                "a class name that is not UTF-8",
                where=folder,
                found=repr(os.fsencode(entry.name)),
                remedy="rename the folder",
            ) from None
        classes[entry.name] = sorted(_images(Path(entry.path), skipped))
    return classes


def _folders(folder: Path, skipped: Counter[str]) -> list[os.DirEntry[str]]:
    """Visible folders directly inside ``folder``."""
    folders = []
    for entry in _entries(folder):
        if not entry.is_dir():
            image = Path(entry.name).suffix.lower() in SUFFIXES
            skipped["image outside a class folder" if image else "other file"] += 1
        elif _hidden(entry.name):
            skipped["hidden folder"] += 1
        else:
            folders.append(entry)
    return folders


def _images(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Image files in ``folder`` and below; links to folders inside a class are not followed."""
    for entry in _entries(folder):
        suffix = Path(entry.name).suffix.lower()
        if entry.is_dir(follow_symlinks=False):
            if _hidden(entry.name):
                skipped["hidden folder"] += 1
            else:
                yield from _images(Path(entry.path), skipped)
        elif not entry.is_file():
            skipped["link to a folder" if entry.is_dir() else "neither a file nor a folder"] += 1
        elif _hidden(entry.name):
            skipped["hidden file"] += 1
        elif suffix not in SUFFIXES:
            skipped[printable(f"{suffix} file" if suffix else "file without a suffix")] += 1
        else:
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError("cannot read folder", where=folder, found=error.strerror) from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _compare(folder: Path, expected: list[str], images: dict[str, list[Path]]) -> None:
    """Check that the classes of a part are those of training."""
    missing = [name for name in expected if not images.get(name)]
    extra = [name for name in images if name not in expected]
    if not missing and not extra:
        return
    differences = [("missing or empty", missing), ("not in the training part", extra)]
    raise DataError(
        "the classes differ from those of the training images",
        where=folder,
        expected=f"the {len(expected)} classes of the training part",
        found="; ".join(f"{what}: {_named(names)}" for what, names in differences if names),
        remedy="give every part the same class folders",
    )


def _named(names: list[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + more
