"""Candidates of a comparison: files in a runtime, and networks in eager PyTorch."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from torch import nn

from secateur import recipe
from secateur.artifact.bounds import check_network
from secateur.artifact.packing import LARGER, LIMIT, unpack
from secateur.artifact.screening import screen
from secateur.disk import read_bytes
from secateur.errors import NetworkError, UsageError
from secateur.models.build import build_network
from secateur.onnx_ir.model import read_model
from secateur.runtimes import RUNTIMES, OnnxRuntime, OpenVino, Runtime, open_file
from secateur.runtimes.eager import Eager

PACKED = ".sec"
NETWORKS = get_args(recipe.Network.model_fields["name"].annotation)


@dataclass(frozen=True)
class ClassifierShape:
    """Input and output of a classifier: channels, side in pixels, number of classes."""

    channels: int
    side: int
    classes: int


@dataclass(frozen=True)
class FileCandidate:
    """A file in a runtime.

    Attributes:
        path: ``.onnx``, or packed ``.sec``, which is decoded when it is opened.
        runtime: One of :data:`secateur.runtimes.RUNTIMES`.
        threads: Threads inside one operator.
    """

    path: Path
    runtime: str
    threads: int

    @property
    def title(self) -> str:
        """The file's name, and its runtime unless that is ONNX Runtime."""
        return str(self.path) + ("" if self.runtime == OnnxRuntime.name else f" ({self.runtime})")

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def prepare(self) -> None:
        """Import the runtime."""
        if self.runtime == OpenVino.name:
            importlib.import_module("openvino")

    def open(self) -> Runtime:
        """Read, decode and load the file.

        Raises:
            SecateurError: The file is damaged, or the runtime cannot run it.
        """
        if self.path.suffix != PACKED:
            return open_file(self.path, self.threads, self.runtime)
        network = unpack(read_bytes(self.path, LIMIT, LARGER)).onnx
        if self.runtime == OnnxRuntime.name:
            return OnnxRuntime(network, self.threads)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(network)
            return open_file(path, self.threads, self.runtime)


@dataclass(frozen=True)
class EagerCandidate:
    """An untrained torchvision network in eager PyTorch, float32. Weights do not affect latency."""

    name: str
    shape: ClassifierShape
    threads: int

    @property
    def title(self) -> str:
        """The network's name, and that it runs in eager PyTorch."""
        return f"{self.name} (eager PyTorch, fp32)"

    @property
    def size_bytes(self) -> int:
        """Bytes of its float32 parameters and buffers."""
        return sum(tensor.nbytes for tensor in self._build().state_dict().values())

    def prepare(self) -> None:
        """Import torchvision, which is slow."""
        importlib.import_module("torchvision.models")

    def open(self) -> Runtime:
        """Build the network."""
        return Eager(self._build(), self.threads)

    def _build(self) -> nn.Module:
        config = recipe.Network.model_validate({"name": self.name, "resolution": self.shape.side})
        return build_network(config, self.shape.channels, self.shape.classes)


@dataclass(frozen=True)
class ModuleCandidate:
    """A given network in eager PyTorch.

    Attributes:
        network: In inference mode; it must be picklable, because the cold start is measured in a
            new process.
        threads: Threads inside one operator.
    """

    network: nn.Module
    threads: int

    @property
    def title(self) -> str:
        """The class's name, and that it runs in eager PyTorch."""
        return f"{type(self.network).__name__} (eager PyTorch)"

    @property
    def size_bytes(self) -> int:
        """Bytes of its parameters and buffers."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    def prepare(self) -> None:
        """Do nothing: unpickling has imported the class."""

    def open(self) -> Runtime:
        """Set the network to inference mode."""
        return Eager(self.network, self.threads)


Candidate = FileCandidate | EagerCandidate | ModuleCandidate


def shape_of(path: Path) -> ClassifierShape:
    """Read the input and output shape of a classifier from its file.

    Raises:
        SecateurError: The file is not a classifier of square images.
    """
    if path.suffix == PACKED:
        model, _ = check_network(unpack(read_bytes(path, LIMIT)).onnx)
    else:
        screen(path, run=True)
        model = read_model(path)
    inputs, outputs = (
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    )
    if len(inputs) != 4 or inputs[2] != inputs[3] or not all(inputs[1:]) or not outputs[-1]:
        raise NetworkError(
            "not a classifier of square images",
            where=path,
            expected="input (N, C, R, R) with C and R fixed, output (N, classes)",
            found=f"input {inputs}, output {outputs}",
        )
    return ClassifierShape(inputs[1], inputs[2], outputs[-1])


def list_candidates(
    files: Sequence[Path | nn.Module], against: Sequence[str], threads: int
) -> list[Candidate]:
    """List the candidates of a comparison, the baseline first.

    Args:
        files: Files and modules with the same input and output, at least one file.
        against: Baselines: a torchvision network (in eager PyTorch), a runtime (which runs each of
            ``files`` too), or another file.
        threads: Threads inside one operator, for all candidates.

    Raises:
        SecateurError: A baseline is unknown, or shapes differ.
    """
    known = [*NETWORKS, *RUNTIMES]
    more = [Path(name) for name in against if name not in known]
    for path in more:
        if not path.is_file():
            raise UsageError(
                "unknown baseline", found=path, expected=", ".join(known), remedy="or give a file"
            )  # fmt: skip
    paths = [file for file in files if isinstance(file, Path)]
    if not paths:
        raise UsageError("nothing to compare", expected="at least one file", found="modules")
    shapes = {path: shape_of(path) for path in [*more, *paths]}
    shape = shapes[paths[0]]
    for path, other in shapes.items():
        if other != shape:
            raise NetworkError("shapes differ", where=path, expected=shape, found=other)
    baselines: list[Candidate] = []
    for name in against:
        if name in NETWORKS:
            baselines.append(EagerCandidate(name, shape, threads))
        elif name not in RUNTIMES:
            baselines.append(FileCandidate(Path(name), OnnxRuntime.name, threads))
    runtimes = list(dict.fromkeys([OnnxRuntime.name, *(n for n in against if n in RUNTIMES)]))
    own: list[Candidate] = []
    for file in files:
        if isinstance(file, Path):
            own += [FileCandidate(file, runtime, threads) for runtime in runtimes]
        else:
            own.append(ModuleCandidate(file, threads))
    return baselines + own
