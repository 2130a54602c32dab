"""Symbols to bits and back, by range coding: one protocol, so that both ways run the same code.

A coder is given, at every step, distributions and sizes that follow from what was coded before.
Writing, it is given the symbols too and returns them; reading, it finds them. Whoever codes
something therefore says once how, and what is written is read.

The range coder is constriction's (Bamler 2022). Distributions are made of integer counts by one
division and one multiplication of float64 each, so that every platform makes the same bits.
"""

from __future__ import annotations

from typing import Protocol

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
        """Code ``count`` symbols; each is i with a probability in proportion to ``weights[i]``.

        Args:
            symbols: int32 (count,), each in [0, len(weights)); None when reading.
            count: How many.
            weights: int64, positive, two at least.
        """

    def bits(self, symbols: Symbols | None, widths: Symbols) -> Symbols:
        """Code evenly distributed symbols; number i is in [0, 2^widths[i]), widths in 0 to 31."""


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
        low = np.minimum(widths, CHUNK_BITS)
        for part, width in ((symbols & ((1 << low) - 1), low), (symbols >> low, widths - low)):
            some = width > 0
            if some.any():
                self._coder.encode(part[some], _uniform, _sizes(width[some]))
        return symbols

    def to_bytes(self) -> bytes:
        """Everything written so far."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Reader:
    """Finds the symbols again.

    Args:
        data: What :meth:`Writer.to_bytes` gave.

    Raises:
        ArtifactError: These are not such bytes, or in later calls: they run out or contradict
            themselves.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise ArtifactError("a damaged stream", expected="whole words of 4 bytes")
        self._coder = _queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def categorical(self, symbols: Symbols | None, count: int, weights: Weights) -> Symbols:
        """See :class:`Stream`."""
        return self._decode(_categorical(weights), count)

    def bits(self, symbols: Symbols | None, widths: Symbols) -> Symbols:
        """See :class:`Stream`."""
        low, found = np.minimum(widths, CHUNK_BITS), np.zeros(len(widths), np.int32)
        for shift, width in ((np.zeros_like(low), low), (low, widths - low)):
            some = width > 0
            if some.any():
                found[some] |= self._decode(_uniform, _sizes(width[some])) << shift[some]
        return found

    def finish(self) -> None:
        """Make sure that everything has been read.

        Raises:
            ArtifactError: Something is left.
        """
        if not self._coder.maybe_exhausted():
            raise ArtifactError("a damaged stream", found="bytes after its end")

    def _decode(self, *what: object) -> Symbols:
        try:
            return self._coder.decode(*what)
        except (AssertionError, ValueError) as error:
            raise ArtifactError("a damaged stream", found=error) from error


_uniform = _model.Uniform()


def _categorical(weights: Weights) -> object:
    return _model.Categorical(weights.astype(np.float64), perfect=False)


def _sizes(widths: Symbols) -> Symbols:
    return np.left_shift(1, widths, dtype=np.int32)
