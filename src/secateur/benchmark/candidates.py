"""What ``secateur bench`` lets compete: files on a runtime, and networks in eager PyTorch."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx
from torch import nn

from secateur import recipe
from secateur.artifact.packing import unpack
from secateur.errors import SecateurError
from secateur.models.build import build_network
from secateur.onnx_ir.model import read_model
from secateur.runtimes import RUNTIMES, Eager, OnnxRuntime, OpenVino, Runtime, open_file

PACKED = ".sec"
NETWORKS = get_args(recipe.Network.model_fields["name"].annotation)


@dataclass(frozen=True)
class Form:
    """What goes into a network and comes out: channels, side in pixels, classes."""

    channels: int
    side: int
    classes: int


@dataclass(frozen=True)
class FileContender:
    """A file on a runtime.

    Attributes:
        path: ``.onnx``, or a packed ``.sec``, which is decoded when it is opened.
        runtime: One of :data:`secateur.runtimes.RUNTIMES`.
        threads: Inside one operator.
    """

    path: Path
    runtime: str
    threads: int

    @property
    def title(self) -> str:
        """The file's name, and its runtime where that is not the usual one."""
        elsewhere = "" if self.runtime == OnnxRuntime.name else f" ({self.runtime})"
        return f"{self.path}{elsewhere}"

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def prepare(self) -> None:
        """Import the runtime."""
        if self.runtime == OpenVino.name:
            importlib.import_module("openvino")

    def open(self) -> Runtime:
        """Read, decode and load it.

        Raises:
            SecateurError: The file is damaged, or the runtime cannot run it.
        """
        if self.path.suffix != PACKED:
            return open_file(self.path, self.threads, self.runtime)
        network = unpack(self.path.read_bytes()).onnx
        if self.runtime == OnnxRuntime.name:
            return OnnxRuntime(network, self.threads)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(network)
            return open_file(path, self.threads, self.runtime)


@dataclass(frozen=True)
class EagerContender:
    """One of torchvision's networks in eager PyTorch, float32, untrained: weights cost no time."""

    name: str
    form: Form
    threads: int

    @property
    def title(self) -> str:
        """The network's name and where it runs."""
        return f"{self.name} (eager PyTorch, fp32)"

    @property
    def size_bytes(self) -> int:
        """Bytes of its float32 weights and statistics."""
        return sum(tensor.nbytes for tensor in self._build().state_dict().values())

    def prepare(self) -> None:
        """Import the networks, which are slow to import."""
        importlib.import_module("torchvision.models")

    def open(self) -> Runtime:
        """Build it."""
        return Eager(self._build(), self.threads)

    def _build(self) -> nn.Module:
        config = recipe.Network.model_validate({"name": self.name, "resolution": self.form.side})
        return build_network(config, self.form.channels, self.form.classes)


Contender = FileContender | EagerContender


def form_of(path: Path) -> Form:
    """Read from a file what goes into it and comes out.

    Raises:
        SecateurError: It is not a file of a classifier of square images.
    """
    if path.suffix == PACKED:
        model = onnx.load_model_from_string(unpack(path.read_bytes()).onnx)
    else:
        model = read_model(path)
    given, found = ([d.dim_value for d in v.type.tensor_type.shape.dim] for v in _ends(model))
    if len(given) != 4 or given[2] != given[3] or not all(given[1:]) or not found[-1]:
        raise SecateurError(
            "not a classifier of square images",
            where=path,
            expected="input (N, C, R, R) with C and R fixed, output (N, classes)",
            found=f"input {given}, output {found}",
        )
    return Form(given[1], given[2], found[-1])


def _ends(model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    return model.graph.input[0], model.graph.output[0]


def contenders(files: list[Path], against: list[str], threads: int) -> list[Contender]:
    """Who competes, whom all are compared with first.

    Args:
        files: Files of networks with the same input.
        against: Names: a network of torchvision's, for that in eager PyTorch; a runtime, for each
            of ``files`` there too; or one more file, for that.
        threads: Inside one operator, for all.

    Raises:
        SecateurError: A name is none of these, or inputs differ.
    """
    known = [*NETWORKS, *RUNTIMES]
    more = [Path(name) for name in against if name not in known]
    for path in more:
        if not path.is_file():
            raise SecateurError(
                "nothing of this name to compare with", found=path, expected=", ".join(known),
                remedy="or give a file",
            )  # fmt: skip
    forms = {path: form_of(path) for path in [*more, *files]}
    form = forms[files[0]]
    for path, other in forms.items():
        if other != form:
            raise SecateurError("networks of another form", where=path, expected=form, found=other)
    first: list[Contender] = []
    for name in against:
        if name in NETWORKS:
            first.append(EagerContender(name, form, threads))
        elif name not in RUNTIMES:
            first.append(FileContender(Path(name), OnnxRuntime.name, threads))
    where = list(dict.fromkeys([OnnxRuntime.name, *(n for n in against if n in RUNTIMES)]))
    return first + [FileContender(path, runtime, threads) for path in files for runtime in where]
