"""What every row is given, and what it gives back."""

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
"""Images that torch.ao's eager mode is calibrated on: one batch, as published."""


@dataclass(frozen=True)
class RowInput:
    """One trained network, in the forms that tools take, and images to look at.

    Attributes:
        network: File of the whole float module, as ``torch.save`` writes it.
        onnx: File of the float network as PyTorch exports it: batch-norms folded, shuffles kept.
        images: To calibrate on, float32 (N, C, R, R), normalized.
        validation: Images with labels, for a tool that asks what it loses.
        prepare: From their pixels to what the network takes.
        quantize: How Secateur quantizes, where it does so anew.
        files: For Secateur's own rows, what it has made already: ``reference``, ``pruned``,
            ``quantized`` and ``packed``. Empty where they must be made anew.
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
    """What a row made.

    Attributes:
        opens: The file that its runtime opens.
        ships: All files somebody would have to copy; their bytes count.
        notes: Notes for the record, plain data.
    """

    opens: Path
    ships: list[Path]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One way to run a network.

    Attributes:
        title: As the tables say it.
        engine: What it runs on: ``eager``, ``torch.compile``, ``onnxruntime`` or ``openvino``.
        network: Whose: ``reference``, ``pruned`` (by Secateur) or ``torch-pruning``.
        make: From what is given and an empty folder to files.
        open: Makes a file ready to run with so many threads.
        kind: ``float``, ``int8``, ``pruned`` or ``secateur``.
        raw: Takes pixels, uint8 (N, C, H, W), instead of what was prepared.
        timed_as: Another row, whose time is this one's as well.
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

    ONNX Runtime's and PyTorch's manuals advise a reduced range where it does not.
    """
    return "vnni" in environment.processor()
