"""Latency of networks on this machine, exported and quantized like a final file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from secateur import recipe
from secateur.benchmarking.layer_timer import Precision
from secateur.benchmarking.timing import latencies
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model
from secateur.onnx_ir.padding import pad_widths
from secateur.quantization.calibrate import calibrate
from secateur.quantization.qdq import write_qdq
from secateur.quantization.scheme import make_scheme
from secateur.runtimes import OnnxRuntime, Runtime

WARMUP = 10


class NetworkTimer:
    """Times networks in turns.

    Args:
        shape: Shape of one image, (C, H, W).
        precision: ``fp32`` or ``int8``; int8 is calibrated on noise, which does not change its
            speed.
        threads: Threads inside one operator.
        repeats: Counted turns.
    """

    def __init__(
        self, shape: Sequence[int], precision: Precision, threads: int, repeats: int = 50
    ) -> None:
        channels, height, width = shape
        self.shape = (channels, height, width)
        self.precision, self.threads, self.repeats = precision, threads, repeats

    def load(self, network: nn.Module) -> Runtime:
        """Export a network, quantize it in int8 precision, and open it.

        Raises:
            NetworkError: The network cannot be exported.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export_onnx(network, self.shape, path, {})
            if self.precision == "int8":
                model = pad_widths(read_model(path), recipe.Quantize().block)
                path = Path(folder) / "quantized.onnx"
                ranges = calibrate(model, [self._noise(2)], "minmax")
                write_qdq(model, make_scheme(model, ranges), path)
            return OnnxRuntime(path, self.threads)

    def time(self, *networks: Runtime) -> list[float]:
        """Smallest milliseconds of each on one image, in turns; disturbances only add time."""
        named = {str(number): network for number, network in enumerate(networks)}
        samples = latencies(named, self._noise(1), WARMUP, self.repeats)
        return [float(samples[name].min()) for name in named]

    def _noise(self, images: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((images, *self.shape), np.float32)
