"""Range coding of symbols, with one protocol for writing and reading.

At each step a coder takes distributions and sizes that depend on preceding symbols only. A writer
also takes the symbols and returns them; a reader decodes them. One function thus both writes and
reads each kind of data.

The range coder is that of constriction (Bamler 2022). Each probability is computed from integer
counts by one float64 division and one multiplication, so that every platform produces the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import constriction
import numpy as np
import numpy.typing as npt

from secateur.errors import ArtifactError

Symbols = npt.NDArray[np.int32]
Weights = npt.NDArray[np.int64]

_queue = constriction.stream.queue
_model = constriction.stream.model
CHUNK_BITS = 16
"""Wider symbols are coded in two halves."""


class Stream(Protocol):
    """A writer or a reader."""

    def categorical(self, symbols: Symbols | None, count: int, weights: Weights) -> Symbols:
        """Code ``count`` symbols; symbol i has a probability proportional to ``weights[i]``.

        Args:
            symbols: int32 (count,), each in [0, len(weights)); None when reading.
            count: Number of symbols.
            weights: int64, positive, at least two.
        """

    def bits(self, symbols: Symbols | None, widths: Symbols) -> Symbols:
        """Code uniform symbols; symbol i is in [0, 2^widths[i]), with widths in 0 to 31."""

    def bits_in_parts(
        self, symbols: Callable[[int], Symbols] | None, widths: Callable[[int], Symbols], count: int
    ) -> Iterator[Symbols]:
        """Code a long list as :meth:`bits` does, and yield it in parts.

        Args:
            symbols: From i to the symbols of part i; None when reading.
            widths: From i to the widths of part i; called one or more times before part i is
                yielded, and not after.
            count: Number of parts.
        """


class Writer:
    """Turns symbols into bytes."""

    def __init__(self) -> None:
        self._coder = _queue.RangeEncoder()

    def categorical(self, symbols: Symbols | None, count: int, weights: Weights) -> Symbols:
        """See :class:`Stream`."""
        assert symbols is not None
        assert len(symbols) == count
        self._coder.encode(symbols, _categorical(weights))
        return symbols

    def bits(self, symbols: Symbols | None, widths: Symbols) -> Symbols:
        """See :class:`Stream`."""
        assert symbols is not None
        self._low_bits(symbols, widths)
        self._high_bits(symbols, widths)
        return symbols

    def bits_in_parts(
        self, symbols: Callable[[int], Symbols] | None, widths: Callable[[int], Symbols], count: int
    ) -> Iterator[Symbols]:
        """See :class:`Stream`."""
        assert symbols is not None
        for code in (self._low_bits, self._high_bits):
            for i in range(count):
                code(symbols(i), widths(i))
        yield from map(symbols, range(count))

    def _low_bits(self, symbols: Symbols, widths: Symbols) -> None:
        low = np.minimum(widths, CHUNK_BITS)
        self._uniform(symbols & ((1 << low) - 1), low)

    def _high_bits(self, symbols: Symbols, widths: Symbols) -> None:
        self._uniform(symbols >> CHUNK_BITS, np.maximum(widths - CHUNK_BITS, 0))

    def _uniform(self, symbols: Symbols, widths: Symbols) -> None:
        some = widths > 0
        if some.any():
            self._coder.encode(symbols[some], _uniform, _sizes(widths[some]))

    def to_bytes(self) -> bytes:
        """Return all bytes written so far."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Reader:
    """Decodes the symbols.

    Args:
        data: Result of :meth:`Writer.to_bytes`.

    Raises:
        ArtifactError: The bytes are not a stream; in later calls, they end too early or are
            inconsistent.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise ArtifactError("a damaged stream", expected="whole words of 4 bytes")
        words = np.frombuffer(data, "<u4").astype(np.uint32, copy=False)
        self._coder = _queue.RangeDecoder(words)

    def categorical(self, symbols: Symbols | None, count: int, weights: Weights) -> Symbols:
        """See :class:`Stream`."""
        return self._decode(_categorical(weights), count)

    def bits(self, symbols: Symbols | None, widths: Symbols) -> Symbols:
        """See :class:`Stream`."""
        values = self._uniform(self._coder, np.minimum(widths, CHUNK_BITS))
        if len(widths) and widths.max() > CHUNK_BITS:
            high = self._uniform(self._coder, np.maximum(widths - CHUNK_BITS, 0))
            values |= high << CHUNK_BITS
        return values

    def bits_in_parts(
        self, symbols: Callable[[int], Symbols] | None, widths: Callable[[int], Symbols], count: int
    ) -> Iterator[Symbols]:
        """See :class:`Stream`.

        The high bits follow the low bits of all parts. To hold only one part in memory, the low
        bits are decoded twice if there are high bits: once to skip them, once to use them.
        """
        if not any(widths(i).max(initial=0) > CHUNK_BITS for i in range(count)):
            yield from (self.bits(None, widths(i)) for i in range(count))
            return
        clone = self._coder.clone()
        for i in range(count):
            self._uniform(self._coder, np.minimum(widths(i), CHUNK_BITS))
        after = self._coder
        for i in range(count):
            values = self._uniform(clone, np.minimum(widths(i), CHUNK_BITS))
            high = self._uniform(after, np.maximum(widths(i) - CHUNK_BITS, 0))
            yield values | high << CHUNK_BITS

    def finish(self) -> None:
        """Check that all bytes have been read.

        Raises:
            ArtifactError: Bytes are left.
        """
        if not self._coder.maybe_exhausted():
            raise ArtifactError("a damaged stream", found="bytes after its end")

    def _uniform(self, coder: Any, widths: Symbols) -> Symbols:
        values, some = np.zeros(len(widths), np.int32), widths > 0
        if some.any():
            values[some] = self._decode(_uniform, _sizes(widths[some]), coder=coder)
        return values

    def _decode(self, *what: object, coder: Any = None) -> Symbols:
        try:
            return (coder or self._coder).decode(*what)
        except (AssertionError, ValueError) as error:
            raise ArtifactError("a damaged stream", found=error) from error


_uniform = _model.Uniform()


def _categorical(weights: Weights) -> object:
    return _model.Categorical(weights.astype(np.float64), perfect=False)


def _sizes(widths: Symbols) -> Symbols:
    return np.left_shift(1, widths, dtype=np.int32)
