"""The range of every tensor to be quantized, over images that the network will be like to see."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from secateur.errors import DataError, SecateurError
from secateur.onnx_graph import read_model
from secateur.quantization.placement import find_placement
from secateur.runtime import session_options

CHUNK = 8
"""Images at a time: all activations of a chunk are in memory at once."""


def calibrate(
    path: Path,
    batches: Iterable[npt.NDArray[np.float32]],
    method: Literal["minmax", "percentile"],
    percentile: float,
) -> dict[str, tuple[float, float]]:
    """Find the range of each tensor to be quantized, by running the float file.

    Args:
        path: A float file of :func:`secateur.export.export_onnx`.
        batches: Normalized images, float32 (N, C, R, R), N of any size.
        method: ``minmax`` takes the extremes seen; ``percentile`` leaves out the same number of
            values at each end, to within 1/8192 of the largest magnitude.
        percentile: The share of values kept by ``percentile``, in (0, 100] %.

    Returns:
        Lowest and highest value by the tensor's name in the file.

    Raises:
        DataError: There are no images.
        SecateurError: A tensor holds NaN or infinity; the message names it.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"need a percentile in (0, 100], found {percentile}")
    model = read_model(path)
    names = find_placement(model).tensors
    session = _session_with_outputs(model, names)
    histograms = {name: Histogram() for name in names}
    images = 0
    for batch in batches:
        for start in range(0, len(batch), CHUNK):
            chunk = np.ascontiguousarray(batch[start : start + CHUNK])
            images += len(chunk)
            for name, values in zip(names, session.run(names, {"image": chunk}), strict=True):
                if not np.isfinite(values).all():
                    raise SecateurError(
                        "not a finite number while calibrating",
                        where=f"tensor {name}",
                        found=values[~np.isfinite(values)][0],
                        remedy="check the network's weights and the images' normalization",
                    )
                histograms[name].add(values, counts=method == "percentile")
    if images == 0:
        raise DataError("no images to calibrate on", where="quantize.images")
    if method == "minmax":
        return {name: (seen.low, seen.high) for name, seen in histograms.items()}
    return {name: seen.central(percentile / 100) for name, seen in histograms.items()}


def _session_with_outputs(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    # One thread: the ranges are part of the result, and must not depend on the machine's cores.
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads=1), providers=["CPUExecutionProvider"]
    )


class Histogram:
    """Extremes and counts of values that come in pieces, whatever their scale.

    Bins are equally wide and symmetric about 0. When a value falls outside, the bins double in
    width by merging pairs, so that no value is counted twice or kept.
    """

    HALF = 8192

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._reach = 0.0
        self._counts = np.zeros(2 * self.HALF, np.int64)

    def add(self, values: npt.NDArray[np.float32], counts: bool = True) -> None:
        """Take in ``values``, finite, of any shape; without ``counts``, their extremes only."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if not counts:
            return
        self._widen(max(-self.low, self.high, float(np.finfo(np.float32).tiny)))
        reach = self._reach
        found, _ = np.histogram(values, bins=2 * self.HALF, range=(-reach, reach))
        self._counts += found

    def _widen(self, needed: float) -> None:
        if self._reach == 0.0:
            self._reach = needed
        while self._reach < needed:
            half = self.HALF // 2
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(merged, half)
            self._reach *= 2

    def central(self, share: float) -> tuple[float, float]:
        """The narrowest bounds, in bins, that leave out at most (1 - share) / 2 at each end."""
        left_out = int(self._counts.sum()) * (1 - share) / 2
        first = int(np.searchsorted(np.cumsum(self._counts), left_out, side="right"))
        # Counted from above, not as a difference: that would round, and leave out one too many.
        from_above = np.searchsorted(np.cumsum(self._counts[::-1]), left_out, side="right")
        last = 2 * self.HALF - 1 - int(from_above)
        width = self._reach / self.HALF
        low, high = -self._reach + first * width, -self._reach + (last + 1) * width
        return max(low, self.low), min(high, self.high)
