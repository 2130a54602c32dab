"""Files that leave the project: packed, unpacked, checked, asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secateur import environment
from secateur.artifact.classifier import load
from secateur.artifact.packing import LIMIT, pack, unpack
from secateur.artifact.verify import verify
from secateur.disk import check_output, read_bytes, write_bytes
from secateur.errors import SecateurError
from secateur.onnx_ir.reader import read_self_contained
from secateur.pipeline.run import run
from secateur.statistics import proportion


def pack_into(source: Path, out: Path, data: Path | None = None) -> Iterator[str]:
    """Pack a run, or any ONNX file, into ``out``; yield lines that say what came of it.

    Args:
        source: A run's folder, whose chain is completed where it is not, or a .onnx file.
        out: The file to write.
        data: Folder with the data set's files, for what a run still lacks.

    Raises:
        SecateurError: ``source`` is neither, or the chain fails.
    """
    check_output(out, [source])
    if (source / "net.sec").is_file():
        content = (source / "net.sec").read_bytes()
    elif (source / "recipe.toml").is_file():
        packed = run(str(source / "recipe.toml"), data=data, out=source.parent).packed
        assert packed is not None
        content = packed.read_bytes()
    elif source.suffix == ".onnx" and source.exists():
        about = {"versions": environment.versions(), "source": source.name}
        content = pack(read_self_contained(source, LIMIT)[0], about)
    else:
        raise SecateurError(
            "nothing to pack", where=source, expected="a run's folder or an .onnx file"
        )
    before = len(unpack(content).onnx)
    write_bytes(out, content, [source])
    yield f"{out}: {len(content):,} bytes, {before / len(content):.2f} times smaller than its ONNX"


def unpack_into(path: Path, out: Path) -> Iterator[str]:
    """Write the ONNX file that was packed; yield a line that says so.

    Raises:
        ArtifactError: The file is damaged, newer, or too large.
    """
    check_output(out, [path])
    unpacked = unpack(read_bytes(path, LIMIT))
    write_bytes(out, unpacked.onnx, [path])
    yield f"{out}: {len(unpacked.onnx):,} bytes, SHA-256 {unpacked.about['onnx_sha256']}"


def verified(path: Path, data: Path | None) -> Iterator[str]:
    """Yield what was checked of a file, line by line.

    Raises:
        ArtifactError: Something is wrong with it.
    """
    found = verify(path, data)
    yield f"{path}: checksums, hash and bounds are right"
    if found.recorded is None:
        yield "no accuracy is recorded in it"
        return
    correct, images = found.recorded
    value, low, high = (100 * bound for bound in proportion(correct, images))
    recorded = f"{correct:,} of {images:,} images, {value:.2f} % [{low:.2f}, {high:.2f}]"
    yield f"recorded: right on {recorded}"
    if found.found is None:
        yield "not checked here: give --data DIR"
    elif found.found == correct:
        yield "found here: the same"
    else:
        yield f"found here: right on {found.found:,}, which rounding of another processor explains"


def predictions(path: Path, images: list[Path], top: int, threads: int) -> Iterator[str]:
    """Yield a line for each image: the classes most likely, with their probabilities.

    Raises:
        SecateurError: The file or an image cannot be read.
    """
    network = load(path, threads=threads)
    for image, found in zip(images, network.predict(images, top), strict=True):
        yield f"{image}: " + ", ".join(f"{name} {100 * score:.1f} %" for name, score in found)
