"""Packed files: pack, unpack, verify, predict."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from secateur import environment
from secateur.artifact.packing import LARGER, LIMIT, pack, unpack
from secateur.disk import check_output, read_bytes, write_bytes
from secateur.errors import DataError, UsageError
from secateur.escaping import csv_text, printable
from secateur.imaging import SUFFIXES, Preparation
from secateur.onnx_ir.reader import read_self_contained

# torch takes seconds to import; modules that need it are imported inside functions.

_MOST_NAMES = 2**20


@dataclass(frozen=True)
class Labels:
    """Metadata that other ONNX files lack: class names and image preparation.

    Attributes:
        classes: A text file, one class name a line, in the order of the outputs.
        mean: Per channel, in units of [0, 1], separated by commas.
        std: Per channel, in the same form.
    """

    classes: Path
    mean: str
    std: str


def pack_into(
    source: Path,
    out: Path,
    data: Path | None = None,
    labels: Labels | None = None,
    limit: int = LIMIT,
) -> Iterator[str]:
    """Pack a run or any ONNX file into ``out``; yield a line with the sizes.

    Args:
        source: A run's folder, whose missing stages are made first, or a .onnx file.
        out: The file to write.
        data: Folder with the data set's files, for missing stages.
        labels: Written into the metadata of an ONNX file, which ``predict`` needs.
        limit: Largest size of the ONNX file, in bytes.

    Raises:
        SecateurError: ``source`` is neither, or a stage fails.
    """
    check_output(out, [source])
    if source.suffix == ".onnx" and source.exists():
        content = _packed(source, labels, limit)
    elif labels is not None:
        raise UsageError("class names, mean and std", where=source, expected="an .onnx file")
    elif (source / "net.sec").is_file():
        content = read_bytes(source / "net.sec", limit, LARGER)
    elif (source / "recipe.toml").is_file():
        from secateur.pipeline.run import run

        packed = run(str(source / "recipe.toml"), data=data, out=source.parent).packed
        assert packed is not None
        content = packed.read_bytes()
    else:
        raise UsageError(
            "nothing to pack", where=source, expected="a run's folder or an .onnx file"
        )
    before = len(unpack(content, limit).onnx)
    write_bytes(out, content, [source])
    yield f"{out}: {len(content):,} bytes, {before / len(content):.2f} times smaller than its ONNX"


def class_names(path: Path) -> list[str]:
    """Read class names from a text file, one per line; empty lines are skipped.

    Raises:
        FileError: The file cannot be read or is larger than 1 MiB.
    """
    text = read_bytes(path, _MOST_NAMES).decode(errors="backslashreplace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _packed(source: Path, labels: Labels | None, limit: int) -> bytes:
    from secateur.artifact.screening import screen

    screen(source, limit=limit)
    data, model = read_self_contained(source, limit)
    if labels is not None:
        import onnx

        known = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, known | _metadata(model, labels, source))
        data = model.SerializeToString(deterministic=True)
    about = {"versions": environment.versions(), "source": source.name}
    return pack(data, about, limit)


def _metadata(model: object, labels: Labels, source: Path) -> dict[str, str]:
    """Return metadata made from ``labels``, checked against the file's input and output."""
    names = class_names(labels.classes)
    sides, outputs = (
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])  # type: ignore[attr-defined]
    )
    if len(sides) != 4 or sides[2] != sides[3] or not sides[2]:
        raise UsageError(
            "not a classifier of square images", where=source,
            expected="input (N, C, R, R) with C and R fixed", found=sides,
        )  # fmt: skip
    if outputs and outputs[-1] and outputs[-1] != len(names):
        raise DataError(
            "class names that do not fit", where=labels.classes,
            expected=f"{outputs[-1]} lines", found=len(names),
        )  # fmt: skip
    mean, std = _numbers("--mean", labels.mean), _numbers("--std", labels.std)
    if len(mean) != sides[1]:
        raise DataError("--mean and --std", expected=f"{sides[1]} numbers each", found=labels.mean)
    return Preparation(mean, std, sides[2]).to_metadata() | {"classes": json.dumps(names)}


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DataError(option, expected="numbers, such as 0.485,0.456,0.406", found=text) from None


def unpack_into(path: Path, out: Path | None = None, limit: int = LIMIT) -> Iterator[str]:
    """Write the packed ONNX file; yield a line with its size and hash.

    Args:
        path: The packed file.
        out: File to write; None for the same name with ``.onnx``, which must not exist.
        limit: Largest size of the ONNX file, in bytes.

    Raises:
        ArtifactError: The file is damaged, newer, or too large.
        StoreError: The file cannot be written.
    """
    target = path.with_suffix(".onnx") if out is None else out
    if out is None and target.exists():
        raise UsageError("the file is there already", where=target, remedy="name one with -o")
    check_output(target, [path])
    unpacked = unpack(read_bytes(path, limit, LARGER), limit)
    write_bytes(target, unpacked.onnx, [path])
    yield f"{target}: {len(unpacked.onnx):,} bytes, SHA-256 {unpacked.about['onnx_sha256']}"


def verified(path: Path, data: Path | None) -> Iterator[str]:
    """Yield the result of each check of a file, line by line.

    Raises:
        ArtifactError: A check fails.
    """
    from secateur.artifact.verify import verify
    from secateur.statistics import proportion

    result = verify(path, data)
    yield f"{path}: checksums, hash and bounds are right"
    if result.recorded is None:
        yield "no accuracy is recorded in it"
        return
    correct, images = result.recorded
    value, low, high = (100 * bound for bound in proportion(correct, images))
    recorded = f"{correct:,} of {images:,} images, {value:.2f} % [{low:.2f}, {high:.2f}]"
    yield f"recorded: right on {recorded}"
    if result.measured is None:
        yield "not measured here: give --data DIR"
    elif result.measured == correct:
        yield "measured here: the same"
    else:
        yield f"measured here: right on {result.measured:,}; other processors round differently"


def predictions(
    path: Path, images: list[Path], top: int, threads: int, form: str = "text"
) -> Iterator[str]:
    """Yield a line for each image with the most likely classes and their probabilities.

    Args:
        path: The packed file.
        images: Image files, and folders of image files.
        top: Number of classes for each image.
        threads: Threads inside one operator.
        form: ``text``; ``json``, an object a line; or ``csv``, a row for each class, with a header.

    Raises:
        SecateurError: The file or an image cannot be read.
    """
    from secateur.artifact.classifier import load

    network, files = load(path, threads=threads), list(_image_files(images))
    if form == "csv":
        yield _row("image", "rank", "class", "probability")
    for image in files:
        (ranked,) = network.predict([image], top)
        if form == "json":
            classes = [{"name": name, "probability": score} for name, score in ranked]
            yield json.dumps({"image": str(image), "classes": classes})
        elif form == "csv":
            for rank, (name, score) in enumerate(ranked, start=1):
                yield _row(csv_text(image), str(rank), csv_text(name), repr(score))
        else:
            scores = ", ".join(f"{name} {100 * score:.1f} %" for name, score in ranked)
            yield printable(f"{image}: {scores}")


def _image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Replace each folder by the image files in it and below it."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise DataError("no image files", where=path, expected=", ".join(sorted(SUFFIXES)))
        yield from inside


def _row(*cells: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
