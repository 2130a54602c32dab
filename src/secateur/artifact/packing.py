"""Lossless conversion between an ONNX file and a packed file, byte for byte.

A packed file has three sections. ``ABOU`` holds metadata and measurements (JSON). ``REST`` holds a
table of the tensors' positions (JSON, one line), then the ONNX file without its tensors. ``CODE``
holds the tensors. The first two are compressed as raw LZMA2 with a dictionary of 1 MiB.
docs/format.md specifies the format.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.artifact.container import Section, read_sections, write_sections
from secateur.artifact.splice import Cut, cut_out, find_tensors, spread_out
from secateur.artifact.stream import Reader, Writer
from secateur.artifact.tensors import DTYPES, FLOAT, Banks, can_code, code_tensor
from secateur.errors import ArtifactError

LIMIT = 2**28
"""Default limit on the unpacked size, in bytes. Decoding needs at most twice that memory, plus
about 50 MB."""

LARGER = "if you trust the file, allow more with --limit"
"""Remedy in the error about a file that is larger than allowed."""

_ABOUT, _REST, _CODE = TAGS = ("ABOU", "REST", "CODE")
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**20}]


@dataclass(frozen=True)
class Unpacked:
    """The content of a packed file.

    Attributes:
        onnx: The bytes of the ONNX file.
        about: Metadata, plain data.
    """

    onnx: bytes
    about: dict[str, Any]


@dataclass(frozen=True)
class _Entry:
    """An entry of the table of tensors.

    Attributes:
        gap: Bytes of the rest between the preceding tensor and this one.
        kind: ONNX data type, as a number.
        shape: Its shape.
        factors: Indices of two preceding tensors whose product this is, or None.
    """

    gap: int
    kind: int
    shape: tuple[int, ...]
    factors: tuple[int, int] | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.kind].itemsize


def pack(onnx: bytes, about: Mapping[str, Any], limit: int = LIMIT) -> bytes:
    """Return the packed file of an ONNX file, after checking that it decodes to ``onnx``.

    Args:
        onnx: The bytes of a self-contained ONNX file.
        about: Plain data: provenance and measurements, at most 1 MiB of JSON.
        limit: Largest size of ``onnx``, in bytes.

    Raises:
        ArtifactError: ``onnx`` is not an ONNX file, or larger than ``limit``.
    """
    _check_size(len(onnx), limit)
    about = dict(about) | {"onnx_sha256": hashlib.sha256(onnx).hexdigest(), "onnx_bytes": len(onnx)}
    writer, banks = Writer(), Banks()
    cuts, tensors = _codable(onnx)
    entries, end, scales = [], 0, _Scales()
    for cut, values in zip(cuts, tensors, strict=True):
        factors = scales.product(values, tensors)
        entries.append(_Entry(cut.start - end, cut.kind, cut.shape, factors))
        end = cut.end
        if factors is None:
            code_tensor(writer, banks, values, DTYPES[cut.kind], cut.shape)
    rest = _table_line(entries) + cut_out(onnx, cuts)
    text = json.dumps(about, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
    _check_size(len(text), _MOST_ABOUT)
    sections = {
        _ABOUT: _squeezed(text),
        _REST: _squeezed(rest),
        _CODE: Section(writer.to_bytes(), sum(entry.nbytes for entry in entries)),
    }
    packed = write_sections(sections)
    if unpack(packed, limit=2 * len(onnx)).onnx != onnx:
        raise ArtifactError("the file does not decode to what was packed; please report this")
    return packed


def unpack(data: bytes, limit: int = LIMIT) -> Unpacked:
    """Return the content of a packed file, bit for bit as it was packed.

    The sizes in the header are checked against ``limit`` before memory is allocated. Decoding then
    needs at most twice those sizes, plus about 50 MB.

    Args:
        data: Bytes of the file.
        limit: Largest size of the ONNX file, in bytes.

    Raises:
        ArtifactError: The file is damaged, of a newer version, too large, or decodes to another
            network than its hash states.
    """
    sections = read_sections(data, TAGS)
    size = sections[_REST].size + sections[_CODE].size
    _check_size(size, limit)
    about = read_about(sections)
    entries, rest = _table(_unsqueezed(sections[_REST]), sections[_CODE].size)
    onnx = spread_out(rest, [(entry.gap, entry.nbytes) for entry in entries])
    del rest
    _decode(Reader(sections[_CODE].stored), entries, onnx)
    digest = hashlib.sha256(onnx).hexdigest()
    if digest != about.get("onnx_sha256"):
        raise ArtifactError(
            "the file decodes to another network than it says",
            expected=about.get("onnx_sha256"),
            found=digest,
        )
    return Unpacked(bytes(onnx), about)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ArtifactError(
            "larger than allowed",
            expected=f"at most {limit:,} bytes once unpacked",
            found=f"{size:,}",
            remedy=LARGER,
        )


def read_about(sections: Mapping[str, Section]) -> dict[str, Any]:
    """Return the metadata of a packed file without decoding the network.

    Args:
        sections: Result of :func:`secateur.artifact.container.read_sections`.

    Raises:
        ArtifactError: The metadata cannot be read.
    """
    _check_size(sections[_ABOUT].size, _MOST_ABOUT)
    try:
        about = json.loads(_unsqueezed(sections[_ABOUT]))
    except (ValueError, RecursionError) as error:
        raise ArtifactError("a damaged section", where=_ABOUT, found=error) from error
    if not isinstance(about, dict):
        raise ArtifactError("a damaged section", where=_ABOUT, found=type(about).__name__)
    return about


def _codable(onnx: bytes) -> tuple[list[Cut], list[npt.NDArray]]:
    cuts, tensors = list[Cut](), list[npt.NDArray]()
    for cut in find_tensors(onnx):
        dtype = DTYPES.get(cut.kind)
        if dtype is None or math.prod(cut.shape) * dtype.itemsize != cut.end - cut.start:
            continue
        if len(cut.shape) > _MOST_SIDES or len(cuts) == _MOST_TENSORS:
            continue  # it stays in the rest
        values = np.frombuffer(onnx, dtype, math.prod(cut.shape), cut.start).reshape(cut.shape)
        if can_code(values):
            cuts.append(cut)
            tensors.append(values)
    return cuts, tensors


class _Scales:
    """Finds tensors that are products of two preceding ones, such as the scales of biases.

    Only the most recent tensors are searched, so that the time is linear in their number.
    """

    def __init__(self) -> None:
        self._number = -1
        self._scalars = _Recent(_SCALARS)
        self._by_shape: dict[tuple[int, ...], _Recent] = {}

    def product(self, values: npt.NDArray, tensors: list[npt.NDArray]) -> tuple[int, int] | None:
        """Return the indices of two ``tensors`` whose product equals ``values`` bit for bit."""
        self._number += 1
        if values.dtype.kind != "f" or values.ndim > 1:
            return None
        others = self._by_shape.setdefault(values.shape, _Recent(_OTHERS))
        with np.errstate(over="ignore", invalid="ignore"):
            products = others.values[:, None] * self._scalars.values
        alike = np.argwhere(products == values.flat[0])[::-1][:_TRIALS]  # the last ones first
        for other, scalar in alike.tolist():
            factors = (self._scalars.numbers[scalar], others.numbers[other])
            if _times(tensors, factors).tobytes() == values.tobytes():
                return factors
        others.add(self._number, values.flat[0])
        if values.ndim == 0:
            self._scalars.add(self._number, values.flat[0])
        return None


_SCALARS, _OTHERS, _TRIALS = 1024, 256, 64


class _Recent:
    """The first elements of the last ``most`` tensors of a kind, and their indices."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.values, self.numbers = np.empty(0, np.float32), list[int]()

    def add(self, number: int, value: np.float32) -> None:
        self.values = np.append(self.values, value)[-self._most :]
        self.numbers = [*self.numbers, number][-self._most :]


def _times(tensors: list[npt.NDArray], factors: tuple[int, int]) -> npt.NDArray[np.float32]:
    scale, other = (tensors[number] for number in factors)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(scale * other, "<f4")


def _decode(reader: Reader, entries: list[_Entry], onnx: bytearray) -> None:
    """Decode each tensor into its position in ``onnx``, which holds zeros there."""
    banks, tensors, at = Banks(), list[npt.NDArray](), 0
    for entry in entries:
        at += entry.gap
        dtype = DTYPES[entry.kind]
        place = np.frombuffer(onnx, dtype, math.prod(entry.shape), at)
        if entry.factors is None:
            code_tensor(reader, banks, None, dtype, entry.shape, place)
        else:
            place[:] = _times(tensors, entry.factors).reshape(-1)
        tensors.append(place.reshape(entry.shape))
        at += entry.nbytes
    reader.finish()


# ---- the table


def _table_line(entries: list[_Entry]) -> bytes:
    rows = [[e.gap, e.kind, list(e.shape), *(e.factors or ())] for e in entries]
    return json.dumps(rows, separators=(",", ":")).encode() + b"\n"


_MOST_TENSORS = 2**14
_MOST_SIDES = 8
_MOST_LINE = _MOST_TENSORS * 160
_MOST_ABOUT = 2**20
"""Largest table, in bytes of JSON; parsing takes up to 30 times as much memory."""


def _table(data: bytes, size: int) -> tuple[list[_Entry], memoryview]:
    """Read the table and check it against ``size``, the total bytes of the tensors."""
    end = data.find(b"\n", 0, _MOST_LINE)
    end = len(data) if end < 0 else end
    rest = memoryview(data)[end + 1 :]
    try:
        if end > _MOST_LINE:
            raise ValueError(f"a line of more than {_MOST_LINE:,} bytes")
        rows = json.loads(data[:end])
        if not (isinstance(rows, list) and len(rows) <= _MOST_TENSORS):
            raise ValueError(f"more than {_MOST_TENSORS} tensors")
        entries: list[_Entry] = []
        for row in rows:
            entries.append(_entry(row, entries))
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError("a damaged table of tensors", where=_REST, found=error) from error
    if sum(entry.gap for entry in entries) > len(rest):
        raise ArtifactError("a damaged table of tensors", where=_REST, found="a gap too many")
    if (total := sum(entry.nbytes for entry in entries)) != size:
        raise ArtifactError("a damaged table of tensors", expected=f"{size:,} bytes", found=total)
    return entries, rest


def _entry(row: list[Any], before: list[_Entry]) -> _Entry:
    gap, kind, shape, *factors = row
    numbers = [gap, kind, *shape, *factors]
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise ValueError(f"expected integers from 0 on, found {row!r:.80}")
    if kind not in DTYPES or len(shape) > _MOST_SIDES or 0 in shape:
        raise ValueError(f"a tensor of type {kind} and shape {shape}")
    entry = _Entry(gap, kind, tuple(shape), tuple(factors) or None)
    if factors:
        if len(factors) != 2 or max(factors) >= len(before):
            raise ValueError(f"a product of other than two tensors before it: {row}")
        scale, other = (before[number] for number in factors)
        fits = scale.shape == () and other.shape == entry.shape
        if {kind, scale.kind, other.kind} != {FLOAT} or not fits:
            raise ValueError(f"a product of tensors that do not fit: {row}")
    return entry


# ---- compression of all but the tensors


def _squeezed(data: bytes) -> Section:
    return Section(lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS), len(data))


def _unsqueezed(section: Section) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        data = decompressor.decompress(section.stored, section.size + 1)
    except lzma.LZMAError as error:
        raise ArtifactError("a damaged section", found=error) from error
    if len(data) != section.size or not decompressor.eof or decompressor.unused_data:
        raise ArtifactError(
            "a damaged section", expected=f"{section.size:,} bytes once unpacked", found=len(data)
        )
    return data
