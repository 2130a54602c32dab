"""The container format: magic, version and checked sections.

    offset  bytes  little endian
    0       8      magic: 89 53 45 43 0D 0A 1A 0A
    8       2      version
    10      2      number of sections, n
    12      16 n   for each section: tag (4), bytes stored (4), bytes once unpacked (4), CRC-32 (4)
    ...     4      CRC-32 of all bytes so far
    ...            the stored sections, in that order, and then the file ends

As in PNG, the first byte of the magic detects transfers that keep 7 bits only, and its line ends
detect conversion as text. A reader skips unknown sections whose tag starts with a lower-case
letter.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from secateur.errors import ArtifactError

MAGIC = b"\x89SEC\r\n\x1a\n"
VERSION = 1

_HEAD = struct.Struct("<8sHH")
_ENTRY = struct.Struct("<4sIII")
_CHECK = struct.Struct("<I")
_MOST_SECTIONS = 16


@dataclass(frozen=True)
class Section:
    """A section of the file.

    Attributes:
        stored: Bytes as stored in the file.
        size: Stated size after unpacking, in bytes; unpacking enforces it.
    """

    stored: bytes
    size: int


def write_sections(sections: Mapping[str, Section]) -> bytes:
    """Return the bytes of a file with ``sections``, a mapping from tags, in that order."""
    head = _HEAD.pack(MAGIC, VERSION, len(sections))
    for tag, section in sections.items():
        check = zlib.crc32(section.stored)
        head += _ENTRY.pack(tag.encode("ascii"), len(section.stored), section.size, check)
    head += _CHECK.pack(zlib.crc32(head))
    return head + b"".join(section.stored for section in sections.values())


def read_sections(data: bytes, known: tuple[str, ...]) -> dict[str, Section]:
    """Read and check every section.

    Args:
        data: Bytes of the file.
        known: Tags of the required sections.

    Raises:
        ArtifactError: The file is of another format, of a newer version, or damaged.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(
            "not a Secateur file", expected=f"to start with {MAGIC!r}", found=data[: len(MAGIC)]
        )
    if len(data) < _HEAD.size:
        raise _cut_short(_HEAD.size, len(data))
    _, version, count = _HEAD.unpack_from(data)
    if version > VERSION:
        raise ArtifactError(
            "a file of a newer Secateur",
            expected=f"version {VERSION} at most",
            found=version,
            remedy="upgrade with `pip install --upgrade secateur`",
        )
    if version < 1 or not 1 <= count <= _MOST_SECTIONS:
        raise ArtifactError("a damaged header", found=f"version {version}, {count} sections")
    start = _HEAD.size + count * _ENTRY.size + _CHECK.size
    if len(data) < start:
        raise _cut_short(start, len(data))
    head = data[: start - _CHECK.size]
    if _CHECK.unpack_from(data, len(head)) != (zlib.crc32(head),):
        raise ArtifactError("a damaged header", found="another checksum")
    return _sections(data, start, list(_ENTRY.iter_unpack(head[_HEAD.size :])), known)


def _sections(
    data: bytes, start: int, entries: list[tuple[bytes, int, int, int]], known: tuple[str, ...]
) -> dict[str, Section]:
    end = start + sum(stored for _, stored, _, _ in entries)
    if end != len(data):
        raise _cut_short(end, len(data))
    sections: dict[str, Section] = {}
    for raw, stored, size, check in entries:
        tag, part = raw.decode("ascii", "replace"), data[start : start + stored]
        start += stored
        if zlib.crc32(part) != check:
            raise ArtifactError("a damaged section", where=tag, found="another checksum")
        if tag in sections:
            raise ArtifactError("a section twice", where=tag)
        if tag not in known and not tag[0].islower():
            raise ArtifactError("an unknown section", where=tag, expected=", ".join(known))
        sections[tag] = Section(part, size)
    if missing := [tag for tag in known if tag not in sections]:
        raise ArtifactError("a section is missing", expected=", ".join(missing))
    return sections


def _cut_short(expected: int, actual: int) -> ArtifactError:
    return ArtifactError(
        "the file is not whole", expected=f"{expected:,} bytes", found=f"{actual:,}",
        remedy="fetch it again",
    )  # fmt: skip
