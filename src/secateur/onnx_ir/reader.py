"""Reads untrusted ONNX files within limits.

A file may store tensors in other files. They are read from the file's own folder or below it only,
not through links to other folders, and count toward the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from secateur.disk import read_bytes
from secateur.errors import FileError

MOST_BYTES = 2**30
"""Default limit on the size of a file and its external data, in bytes."""

MOST_NODES = 2**16
MOST_TENSORS = 2**16
_MOST_DEPTH = 16


def read_onnx(path: Path, limit: int = MOST_BYTES) -> onnx.ModelProto:
    """Read an ONNX file, including its external data.

    Args:
        path: A regular file; external data is read from its folder.
        limit: Largest total size in bytes.

    Raises:
        FileError: The file cannot be read, is not ONNX, or exceeds a limit.
    """
    return read_self_contained(path, limit)[1]


def read_self_contained(path: Path, limit: int = MOST_BYTES) -> tuple[bytes, onnx.ModelProto]:
    """Read an ONNX file; return its bytes, with external data included, and the model.

    Without external data, the bytes are those of the file.

    Args:
        path: See :func:`read_onnx`.
        limit: See :func:`read_onnx`.

    Raises:
        FileError: See :func:`read_onnx`.
    """
    data = read_bytes(path, limit, remedy=_REMEDY)
    model = parse(data, path)
    external = [t for t in _tensors(model.graph, path) if t.data_location == TensorProto.EXTERNAL]
    if not external:
        return data, model
    left = limit - len(data)
    for tensor in external:
        left -= _inline(tensor, path, left)
    try:
        return model.SerializeToString(deterministic=True), model
    except Exception as error:  # protobuf holds at most 2 GiB
        raise FileError("cannot read an ONNX file", where=path, found=error) from error


def parse(data: bytes, where: object) -> onnx.ModelProto:
    """Parse the bytes of an ONNX file and check its limits; external data is not read.

    Args:
        data: Bytes of the file.
        where: Name of the file in errors.

    Raises:
        FileError: The bytes are not an ONNX graph, or exceed a limit.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is not importable from a stable place
        raise FileError("not an ONNX file", where=where, found=error) from error
    if not model.HasField("graph"):
        raise FileError("an ONNX file without a graph", where=where)
    for name, count, most in (
        ("nodes", len(model.graph.node), MOST_NODES),
        ("tensors", len(model.graph.initializer), MOST_TENSORS),
    ):
        if count > most:
            raise FileError(
                f"an ONNX file of too many {name}",
                where=where, expected=f"at most {most:,}", found=f"{count:,}",
            )  # fmt: skip
    return model


_REMEDY = "if you trust the file, allow more with --limit"


def _tensors(graph: onnx.GraphProto, path: Path, depth: int = 0) -> Iterator[TensorProto]:
    """All tensors of a graph that may be external, including those of subgraphs."""
    if depth > _MOST_DEPTH:
        raise FileError("an ONNX file of too deeply nested graphs", where=path)
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner, path, depth + 1)


def _inline(tensor: TensorProto, path: Path, left: int) -> int:
    """Read a tensor's external data into the tensor; return its size."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    source = _inside(path, entries.get("location", ""), tensor.name)
    try:
        offset, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
    except ValueError as error:
        raise _refused(path, tensor.name, f"offset or length {error}") from error
    size = source.stat().st_size
    length = length if "length" in entries else size - offset
    if offset < 0 or length < 0 or offset + length > size:
        raise _refused(path, tensor.name, f"bytes {offset} to {offset + length} of {size}")
    if length > left:
        raise FileError(
            "larger than allowed", where=path, expected=f"{left:,} more bytes of tensors at most",
            found=f"{length:,} in {source.name}", remedy=_REMEDY,
        )  # fmt: skip
    with source.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return length


def _inside(path: Path, location: str, name: str) -> Path:
    """Return the file named by ``location``, in the folder of ``path`` or below it."""
    folder = path.resolve().parent
    try:
        source = (folder / location).resolve(strict=True)
    except (OSError, ValueError) as error:
        reason = f"{location!r}: {getattr(error, 'strerror', None) or error}"
        raise _refused(path, name, reason) from error
    if not source.is_relative_to(folder) or not source.is_file():
        raise _refused(path, name, repr(location))
    return source


def _refused(path: Path, name: str, reason: str) -> FileError:
    return FileError(
        f"cannot read the external data of tensor {name[:60]!r}", where=path,
        expected="a regular file in the folder of the ONNX file", found=reason,
        remedy="keep the files of the network together",
    )  # fmt: skip
