"""A decoder of .sec files written from docs/format.md alone: plain Python, slow, few checks.

It shares no line with secateur.artifact, so that it tests the documentation of the format.
"""

import hashlib
import json
import lzma
import math
import struct
import zlib

LOW = [0, 1, 2, 3]
EXTRA = [0, 0, 0, 0]
for _k in range(2, 31):
    LOW += [2**_k, 2**_k + 2 ** (_k - 1)]
    EXTRA += [_k - 1, _k - 1]
A = sorted((0.02 * 2**k) * h for k in range(13) for h in (1, 1.4140625))
B = [0.25, 0.5, 1, 2, 4, 8]
MASK = 2**64 - 1


class Coder:
    def __init__(self, data):
        self.words = [word for (word,) in struct.iter_unpack("<I", data)]
        self.low, self.range, self.next = 0, MASK, 2
        self.point = (self.word(0) << 32) | self.word(1)

    def word(self, number):
        return self.words[number] if number < len(self.words) else 0

    def quantile(self):
        quantile = ((self.point - self.low) & MASK) // (self.range >> 24)
        assert quantile < 2**24
        return quantile

    def take(self, start, frequency):
        scale = self.range >> 24
        self.low, self.range = (self.low + scale * start) & MASK, scale * frequency
        if self.range < 2**32:
            self.low, self.range = (self.low << 32) & MASK, self.range << 32
            self.point = ((self.point << 32) & MASK) | self.word(self.next)
            self.next += 1

    def bits(self, width):
        frequency = 2 ** (24 - width)
        symbol = self.quantile() // frequency
        self.take(symbol * frequency, frequency)
        return symbol

    def bit_list(self, widths):
        low = [self.bits(min(w, 16)) if w else 0 for w in widths]
        high = [self.bits(w - 16) if w > 16 else 0 for w in widths]
        return [a + (b << 16) for a, b in zip(low, high, strict=True)]

    def counted(self, counts):
        scale = (2**24 - len(counts)) / sum(counts)
        cumulative, before = [], 0
        for number, count in enumerate(counts):
            cumulative.append(int(before * scale) + number)
            before += count
        cumulative.append(2**24)
        quantile = self.quantile()
        symbol = next(s for s in range(len(counts)) if quantile < cumulative[s + 1])
        self.take(cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol])
        return symbol


class Bank:
    def __init__(self, most):
        buckets = sum(low <= most for low in LOW)
        self.counts = [[1] * buckets for _ in range(189)]


def matrix(coder, bank, gaps, rows, columns):
    if not coder.bits(1):
        return dense(coder, bank, rows, columns)
    (count,) = coder.bit_list([31])
    skipped = dense(coder, gaps, 1, count)
    kept = dense(coder, bank, 1, count)
    values, at = [0] * (rows * columns), -1
    for gap, value in zip(skipped, kept, strict=True):
        at += gap + 1
        values[at] = value
    return values


def dense(coder, bank, rows, columns):
    if not rows * columns:
        return []
    area = min(max(rows * columns // 256, 64), 4096)
    height = min(math.isqrt(area), rows)
    width = min(area // height, columns)
    buckets = [[0] * columns for _ in range(rows)]
    row_sums, row_counts = [0.0] * rows, [0] * rows
    column_sums, column_counts = [0.0] * columns, [0] * columns
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            places = [
                (i, j)
                for i in range(top, min(top + height, rows))
                for j in range(left, min(left + width, columns))
            ]
            overall = (sum(row_sums) + 4 * 0.5) / (sum(row_counts) + 4)
            second = sum(b < overall for b in B)
            by_context = {}
            for i, j in places:
                row = (row_sums[i] + 2 * overall) / (row_counts[i] + 2)
                column = (column_sums[j] + 2 * overall) / (column_counts[j] + 2)
                expected = row * (column / overall)
                context = 7 * sum(a < expected for a in A) + second
                by_context.setdefault(context, []).append((i, j))
            for context in sorted(by_context):
                for i, j in by_context[context]:
                    buckets[i][j] = coder.counted(bank.counts[context])
            for context, seen in by_context.items():
                for i, j in seen:
                    bank.counts[context][buckets[i][j]] += 16
            for context, counts in enumerate(bank.counts):
                if sum(counts) > 65536:
                    bank.counts[context] = [(count + 1) // 2 for count in counts]
            for i, j in places:
                typical = (2 * LOW[buckets[i][j]] + 2 ** EXTRA[buckets[i][j]] - 1) / 2
                row_sums[i] += typical
                row_counts[i] += 1
                column_sums[j] += typical
                column_counts[j] += 1
    flat = [bucket for row in buckets for bucket in row]
    filled = [bucket for bucket in flat if bucket]
    signs = coder.bit_list([1] * len(filled))
    places = coder.bit_list([EXTRA[bucket] for bucket in filled])
    values = iter(
        (LOW[b] + p) * (-1 if s else 1) for b, s, p in zip(filled, signs, places, strict=True)
    )
    return [next(values) if bucket else 0 for bucket in flat]


def tensor(coder, banks, kind, shape):
    rows = shape[0] if len(shape) > 1 else 1
    columns = math.prod(shape) // rows
    most = 256 if kind in (2, 3) else 2**30 - 1
    bank = banks.setdefault((kind, min(len(shape), 2)), Bank(most))
    gaps = banks.setdefault("gaps", Bank(2**30 - 1))
    if kind == 1:
        low, high, zeros = coder.bit_list([16, 16, 5])
        steps = matrix(coder, bank, gaps, rows, columns)
        words = [low + (high << 16) + (step << zeros) for step in steps]
        return struct.pack(f"<{len(words)}I", *words)
    values = matrix(coder, bank, gaps, rows, columns)
    return struct.pack(f"<{len(values)}{ {2: 'B', 3: 'b', 6: 'i'}[kind] }", *values)


def product(scalar, vector):
    (scale,) = struct.unpack("<f", scalar)
    # A product of two floats of 24 bits is exact in float64: packing rounds it once.
    return b"".join(struct.pack("<f", scale * x) for (x,) in struct.iter_unpack("<f", vector))


def decode(data):
    """The bytes of the ONNX file in a .sec file."""
    assert data[:8] == bytes.fromhex("8953 4543 0D0A 1A0A")
    version, count = struct.unpack_from("<HH", data, 8)
    assert version == 1
    start, sections = 16 + 16 * count, {}
    for number in range(count):
        tag, stored, size, check = struct.unpack_from("<4sIII", data, 12 + 16 * number)
        part = data[start : start + stored]
        assert zlib.crc32(part) == check
        sections[tag] = part, size
        start += stored
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]
    about, rest = (
        lzma.decompress(sections[tag][0], lzma.FORMAT_RAW, filters=filters)
        for tag in (b"ABOU", b"REST")
    )
    line, _, rest = rest.partition(b"\n")
    coder, banks, tensors, onnx, at = Coder(sections[b"CODE"][0]), {}, [], b"", 0
    for gap, kind, shape, *factors in json.loads(line):
        if factors:
            tensors.append(product(*(tensors[number] for number in factors)))
        else:
            tensors.append(tensor(coder, banks, kind, shape))
        onnx += rest[at : at + gap] + tensors[-1]
        at += gap
    onnx += rest[at:]
    assert hashlib.sha256(onnx).hexdigest() == json.loads(about)["onnx_sha256"]
    return onnx
