"""Calibration: ranges of all tensors to be quantized, on representative images."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from secateur.console import say
from secateur.errors import DataError, SecateurError
from secateur.onnx_ir.model import Graph, read_model
from secateur.quantization.affine import UINT8
from secateur.quantization.histogram import Histogram, Range
from secateur.quantization.placement import find_placement
from secateur.runtimes import session_options

Method = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "entropy")

CHUNK = 8
"""Batch size: all activations of a batch are in memory at once."""


def calibrate(
    source: Path | onnx.ModelProto,
    batches: Iterable[npt.NDArray[np.float32]],
    method: Method,
    percentile: float = 99.99,
) -> dict[str, Range]:
    """Find the range of each tensor to be quantized, by running the float file.

    Tensors that share a scale are counted together and have one range.

    Args:
        source: A float file of :func:`secateur.onnx_ir.export.export_onnx`, or its graph.
        batches: Normalized images, float32 (N, C, R, R), of any batch size.
        method: ``minmax`` uses the extremes; ``percentile`` excludes the same number of values at
            each end, within 1/8192 of the largest magnitude; ``mse`` minimizes the mean square
            error and ``entropy`` the Kullback-Leibler divergence, both for uint8.
        percentile: Percentage of values kept by ``percentile``, in (0, 100].

    Returns:
        From the tensor's name in the file to its lowest and highest value to represent.

    Raises:
        DataError: There are no images.
        SecateurError: A tensor has NaN or infinity; the message names it.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"need a percentile in (0, 100], found {percentile}")
    histograms = count_values(source, batches, 0 if method == "minmax" else None)
    return choose_ranges(histograms, method, percentile)


def count_values(
    source: Path | onnx.ModelProto,
    batches: Iterable[npt.NDArray[np.float32]],
    counted: int | None = None,
) -> dict[str, Histogram]:
    """Count the values of each tensor to be quantized; as :func:`calibrate`, for all methods.

    Args:
        source: See :func:`calibrate`.
        batches: See :func:`calibrate`.
        counted: Number of images whose values are counted, None for all; only the extremes of
            others are used.

    Returns:
        From the tensor's name in the file to its histogram, which tensors with a common scale
        share.
    """
    model = read_model(source) if isinstance(source, Path) else copy.deepcopy(source)
    groups = find_placement(model).groups
    histograms: dict[str, Histogram] = {}
    for group in groups:
        histograms |= dict.fromkeys(group, Histogram())
    names = list(histograms)
    session = _session_with_outputs(model, names)
    image = session.get_inputs()[0]
    size = image.shape[0] if isinstance(image.shape[0], int) else 0  # fixed in the graph
    images = 0
    for batch in batches:
        for start in range(0, len(batch), size or CHUNK):
            chunk = np.ascontiguousarray(batch[start : start + (size or CHUNK)])
            feed = {image.name: np.resize(chunk, (size or len(chunk), *chunk.shape[1:]))}
            counts = counted is None or images < counted
            images += len(chunk)
            for name, values in zip(names, session.run(names, feed), strict=True):
                _check_finite(name, values)
                histograms[name].add(values, counts=counts)
    if images == 0:
        raise DataError(
            "no images to calibrate on", where="quantize.images", remedy="give at least one image"
        )
    _check_varied(histograms, Graph(model).inputs)
    return histograms


def choose_ranges(
    histograms: dict[str, Histogram], method: Method, percentile: float = 99.99
) -> dict[str, Range]:
    """Choose the range of each tensor by one method, from histograms; see :func:`calibrate`."""
    chosen = {id(h): _choose(h, method, percentile) for h in histograms.values()}
    return {name: chosen[id(histogram)] for name, histogram in histograms.items()}


def _choose(histogram: Histogram, method: Method, percentile: float) -> Range:
    if method == "minmax":
        return histogram.extremes
    if method == "percentile":
        return histogram.central(percentile / 100)
    if method == "mse":
        return histogram.least_error(UINT8)
    return histogram.least_divergence(UINT8)


def _check_varied(histograms: dict[str, Histogram], inputs: list[str]) -> None:
    for name, histogram in histograms.items():
        if histogram.low < histogram.high:
            continue
        if name in inputs:
            raise DataError(
                "every pixel of the calibration images is the same",
                where=f"tensor {name}",
                found=histogram.low,
                remedy="calibrate on images like those that the network will see",
            )
        say(
            f"quantize: {name} is {histogram.low:g} everywhere on the calibration images; "
            "the layers before it are dead, or the images too few"
        )


def _check_finite(name: str, values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise SecateurError(
            "not a finite number while calibrating",
            where=f"tensor {name}",
            found=values[~np.isfinite(values)][0],
            remedy="check the network's weights and the images' normalization",
        )


def _session_with_outputs(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    # One thread, because ranges must not depend on the number of cores.
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads=1), providers=["CPUExecutionProvider"]
    )
