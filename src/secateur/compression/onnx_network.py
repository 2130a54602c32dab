"""An ONNX file in place of a PyTorch network; it is quantized and packed, not pruned or trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from secateur.benchmarking.cost import macs, parameters
from secateur.data import Preparation
from secateur.disk import check_input
from secateur.errors import DataError, NetworkError
from secateur.onnx_ir.export import quiet
from secateur.onnx_ir.model import OPSET, read_model
from secateur.quantization.importing import import_onnx
from secateur.runtimes import OnnxRuntime

REASON = "a file is quantized and packed; channels are removed from networks in PyTorch"
"""Why an ONNX file or an exported program is not pruned."""


class OnnxNetwork(nn.Module):
    """An ONNX file as a PyTorch module in inference mode.

    Args:
        path: A float classifier of opset 13 or newer, from any exporter.
        prepare: Image preparation; it determines the input shape.
        threads: Threads inside one operator.

    Attributes:
        graph: The imported graph, for any batch size.

    Raises:
        SecateurError: The file cannot be read, imported or run.
    """

    def __init__(self, path: Path, prepare: Preparation, threads: int) -> None:
        super().__init__()
        shape = (2, prepare.channels, prepare.resolution, prepare.resolution)
        noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        self.path, self.graph = path, import_onnx(path, noise)
        self._content = self.graph.SerializeToString(deterministic=True)
        self._runtime = OnnxRuntime(self._content, threads)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores, float32 (N, classes), for prepared images, float32 (N, C, R, R)."""
        return torch.from_numpy(self._runtime.run(images.contiguous().cpu().numpy()))

    def extra_repr(self) -> str:
        """The hash of the file, which makes the network's fingerprint unique."""
        return f"sha256={hashlib.sha256(self._content).hexdigest()}"

    def __deepcopy__(self, memo: object) -> OnnxNetwork:
        """Return the same object, which is immutable."""
        return self


def is_file(network: nn.Module) -> bool:
    """Whether a network is an ONNX file."""
    return isinstance(network, OnnxNetwork)


def count(network: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Count MACs of one image of shape (C, H, W), and parameters; see the module ``cost``.

    In an ONNX file, Conv and Gemm nodes and all float constants are counted.
    """
    if not isinstance(network, OnnxNetwork):
        return macs(network, shape), parameters(network)
    model = onnx.ModelProto()
    model.CopyFrom(network.graph)
    for side, length in zip(
        model.graph.input[0].type.tensor_type.shape.dim, (1, *shape), strict=True
    ):
        side.Clear()
        side.dim_value = length
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {
        value.name: math.prod(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in weights:
            # Each output element is a sum over one row of the weight.
            total += sizes.get(node.output[0], 0) * math.prod(weights[node.input[1]][1:])
    floats = (t.dims for t in inferred.initializer if t.data_type == onnx.TensorProto.FLOAT)
    return total, sum(math.prod(dims) for dims in floats)


def file_of_program(path: Path, target: Path) -> Path:
    """Write an exported program, ``.pt2``, as an ONNX file.

    Raises:
        NetworkError: The program cannot be read or exported.
        FileError: ``path`` is not a regular file.
    """
    check_input(path)
    try:
        program = torch.export.load(path)
        with quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
        assert exported is not None
        exported.save(target)
    except Exception as error:  # reader and exporter may raise anything
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError("cannot read an exported program", where=path, found=message) from error
    return target


def preparation_of_file(path: Path, default: Preparation) -> Preparation:
    """Return the image preparation in a file's metadata, else ``default`` at its input size.

    Raises:
        StoreError: The file cannot be read.
        NetworkError: The file does not take square images.
    """
    model = read_model(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        return Preparation.from_metadata(metadata)
    except DataError:
        pass
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    sides = _sides(inputs[0]) if len(inputs) == 1 else []
    if len(sides) != 4 or sides[1] not in (1, 3) or sides[2] != sides[3]:
        raise NetworkError(
            "not a classifier of square images", where=path,
            expected="one input (N, 1 or 3, R, R)", found=f"{len(inputs)} inputs, {sides}",
        )  # fmt: skip
    mean, std = (default.mean, default.std) if sides[1] == 3 else ((0.5,), (0.5,))
    return Preparation(mean, std, sides[2] or default.resolution)


def _sides(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
