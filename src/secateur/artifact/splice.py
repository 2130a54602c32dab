"""Removal of the tensors from the bytes of an ONNX file, and the inverse.

The file is protobuf: fields of a key (number and wire type, as a varint) and a value. The data of a
tensor is contiguous in ``ModelProto.graph (7) . initializer (5) . raw_data (9)``. All other bytes
are kept unchanged, so that the file is restored bit for bit, whichever library wrote it.
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.errors import ArtifactError

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Cut:
    """Position of a tensor in the bytes of a file.

    Attributes:
        name: Name of the tensor.
        kind: ONNX data type, as a number.
        shape: Shape of the tensor.
        start: Offset of the first byte of its data.
        end: Offset after the last byte of its data.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    end: int


def find_tensors(data: bytes) -> list[Cut]:
    """Find every initializer with ``raw_data``, in the file's order.

    Raises:
        ArtifactError: The bytes are not an ONNX file.
    """
    return [
        cut
        for graph in _messages(data, 0, len(data), _GRAPH)
        for tensor in _messages(data, *graph, _INITIALIZER)
        if (cut := _tensor(data, *tensor)) is not None
    ]


def cut_out(data: bytes, cuts: list[Cut]) -> bytes:
    """Return ``data`` without the tensors of ``cuts``."""
    ends = [0, *(cut.end for cut in cuts)]
    starts = [*(cut.start for cut in cuts), len(data)]
    return b"".join(data[end:start] for end, start in zip(ends, starts, strict=True))


def spread_out(rest: bytes | memoryview, holes: list[tuple[int, int]]) -> bytearray:
    """Invert :func:`cut_out`, with zeros in place of the tensors.

    Args:
        rest: Result of :func:`cut_out`.
        holes: For each tensor, the bytes of ``rest`` since the preceding tensor, and its size in
            bytes.
    """
    data = bytearray(len(rest) + sum(size for _, size in holes))
    at = source = 0
    for gap, size in holes:
        data[at : at + gap] = rest[source : source + gap]
        at, source = at + gap + size, source + gap
    data[at:] = rest[source:]
    return data


def _tensor(data: bytes, start: int, end: int) -> Cut | None:
    name, kind, shape, raw = "", 0, [], None
    for number, wire, value, stop in _fields(data, start, end):
        if number == _DIMS and wire == _VARINT:
            shape.append(value)
        elif number == _DIMS:  # packed
            while value < stop:
                side, value = _varint(data, value, stop)
                shape.append(side)
        elif number == _DATA_TYPE:
            kind = value
        elif number == _NAME:
            name = data[value:stop].decode("utf-8", "replace")
        elif number == _RAW_DATA:
            raw = (value, stop)
    return None if raw is None else Cut(name, kind, tuple(shape), *raw)


def _messages(data: bytes, start: int, end: int, field: int) -> Iterator[tuple[int, int]]:
    for number, wire, value, stop in _fields(data, start, end):
        if number == field and wire == _BYTES:
            yield value, stop


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, value (or its start) and end of each field."""
    while start < end:
        key, start = _varint(data, start, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, stop = _varint(data, start, end)
        elif wire == _BYTES:
            length, value = _varint(data, start, end)
            stop = value + length
        elif wire in (_FIXED32, _FIXED64):
            value, stop = start, start + (4 if wire == _FIXED32 else 8)
        else:
            raise ArtifactError("not an ONNX file", found=f"wire type {wire} at byte {start}")
        if stop > end:
            raise ArtifactError("not an ONNX file", found=f"a field beyond the end, at {start}")
        yield number, wire, value, stop
        start = stop


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
    raise ArtifactError("not an ONNX file", found=f"a number without end at byte {start}")
