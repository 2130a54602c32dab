"""Inputs and outputs of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.int8_rows import Array
from secateur import environment
from secateur.data import Images, Preparation
from secateur.recipe import Quantize
from secateur.runtimes import Runtime

CALIBRATED_ON = 50
"""Number of calibration images of torch.ao's eager mode: one batch, as published."""


@dataclass(frozen=True)
class RowInput:
    """A trained network in the forms that tools accept, with images.

    Attributes:
        network: File of the float module, from ``torch.save``.
        onnx: File of the float network as PyTorch exports it: batch-norms folded, shuffles kept.
        images: Calibration images, normalized float32 (N, C, R, R).
        validation: Labeled images, for tools that need them.
        prepare: Maps stored pixels to the network's input.
        quantize: Options of Secateur's quantization.
        files: For Secateur's rows, existing files: ``reference``, ``pruned``, ``quantized`` and
            ``packed``. Empty if they must be made.
        notes: Notes of the row at the recipe's own geometry, if this is another; else None.
    """

    network: Path
    onnx: Path
    images: Array
    validation: Images
    prepare: Preparation
    quantize: Quantize
    files: dict[str, Path] = field(default_factory=dict)
    notes: dict[str, Any] | None = None

    @property
    def module(self) -> nn.Module:
        """The float network, in inference mode."""
        import torch

        return torch.load(self.network, weights_only=False).eval()


@dataclass(frozen=True)
class RowOutput:
    """Files of a row.

    Attributes:
        opens: The file that its runtime opens.
        ships: All files of a deployment; their bytes are counted.
        notes: Notes for the record, plain data.
    """

    opens: Path
    ships: list[Path]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One way to run a network.

    Attributes:
        title: Title in tables.
        engine: What it runs on: ``eager``, ``torch.compile``, ``onnxruntime`` or ``openvino``.
        network: ``reference``, ``pruned`` (by Secateur) or ``torch-pruning``.
        make: From the inputs and an empty folder to files.
        open: Opens a file with a number of threads.
        kind: ``float``, ``int8``, ``pruned`` or ``secateur``.
        raw: Whether the input is pixels, uint8 (N, C, H, W), not prepared images.
        timed_as: Another row with the same latency.
    """

    title: str
    engine: str
    network: str
    make: Callable[[RowInput, Path], RowOutput]
    open: Callable[[Path, int], Runtime]
    kind: str
    raw: bool = False
    timed_as: str = ""


def has_vnni() -> bool:
    """Whether the processor sums products of int8 without saturating 16 bits.

    Otherwise the manuals of ONNX Runtime and PyTorch advise a reduced range.
    """
    return "vnni" in environment.processor()
