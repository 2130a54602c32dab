import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.artifact.container import MAGIC, VERSION, Section, read_sections, write_sections
from secateur.errors import ArtifactError

PARTS = {"AAAA": Section(b"one", 3), "BBBB": Section(b"", 7), "CCCC": Section(b"\0" * 9, 0)}
FILE = write_sections(PARTS)


@given(st.dictionaries(st.sampled_from(["AAAA", "BBBB", "CCCC", "dddd"]), st.binary(max_size=40)))
def test_what_is_written_is_read(parts):
    sections = {tag: Section(data, 3 * len(data)) for tag, data in parts.items()}
    if sections:
        assert read_sections(write_sections(sections), tuple(sections)) == sections


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(at, change):
    damaged = bytearray(FILE)
    damaged[at] ^= change
    with pytest.raises(ArtifactError):
        read_sections(bytes(damaged), tuple(PARTS))


@pytest.mark.parametrize("length", range(len(FILE)))
def test_a_file_cut_short_is_refused(length):
    with pytest.raises(ArtifactError, match=r"not whole|not a Secateur file"):
        read_sections(FILE[:length], tuple(PARTS))


def test_bytes_after_the_end_are_refused():
    with pytest.raises(ArtifactError, match="not whole"):
        read_sections(FILE + b"\0", tuple(PARTS))


def with_head(version=VERSION, count=1, entries=b""):
    head = struct.pack("<8sHH", MAGIC, version, count) + entries
    return head + struct.pack("<I", zlib.crc32(head))


def test_a_newer_version_is_refused_whatever_follows():
    with pytest.raises(ArtifactError, match=r"newer Secateur.*found 2; upgrade with"):
        read_sections(with_head(2)[:12], ("AAAA",))


def test_a_file_of_another_kind_is_called_that():
    with pytest.raises(ArtifactError, match=r"not a Secateur file.*PK"):
        read_sections(b"PK\x03\x04" + b"\0" * 100, ("AAAA",))


@pytest.mark.parametrize("count", [0, 17, 65535])
def test_sections_are_counted_before_they_are_read(count):
    with pytest.raises(ArtifactError, match="damaged header"):
        read_sections(with_head(count=count), ("AAAA",))


def test_sections_that_may_be_skipped():
    more = write_sections(PARTS | {"note": Section(b"hello", 5)})
    assert read_sections(more, tuple(PARTS)) == PARTS | {"note": Section(b"hello", 5)}
    with pytest.raises(ArtifactError, match=r"unknown section \(NOTE\)"):
        read_sections(write_sections(PARTS | {"NOTE": Section(b"", 0)}), tuple(PARTS))
    with pytest.raises(ArtifactError, match="missing: expected DDDD"):
        read_sections(FILE, ("AAAA", "DDDD", "BBBB", "CCCC"))


def test_a_section_stands_there_once():
    entry = struct.pack("<4sIII", b"AAAA", 0, 0, zlib.crc32(b""))
    with pytest.raises(ArtifactError, match=r"twice \(AAAA\)"):
        read_sections(with_head(count=2, entries=2 * entry), ("AAAA",))
