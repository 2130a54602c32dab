"""Packed tiny networks, for the tests of packed files."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from helpers.tiny_networks import NETWORKS, exported, images
from secateur.artifact.packing import pack
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model, write_model
from secateur.quantization.calibrate import calibrate
from secateur.quantization.qdq import write_qdq
from secateur.quantization.scheme import make_scheme


def micro():
    """A network of two convolutions, for what is done very often."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    ).eval()  # fmt: skip


MADE = NETWORKS | {"micro": (micro, (3, 12, 12))}
CLASSES = tuple(f"class {number}" for number in range(10))


@functools.cache
def quantized(name: str) -> bytes:
    """The bytes of a tiny network's QDQ file."""
    make, shape = MADE[name]
    metadata = {
        "classes": json.dumps(CLASSES), "mean": json.dumps([0.5] * shape[0]),
        "std": json.dumps([0.25] * shape[0]), "name": '"tiny"', "resolution": str(shape[1]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        if name in NETWORKS:
            exported(name, path)
        else:
            export_onnx(make(), shape, path, {})
        made = read_model(path)
        onnx.helper.set_model_props(made, metadata)
        write_model(made, path)
        ranges = calibrate(path, [images(shape, 64, seed=2).numpy()], "minmax")
        model = read_model(path)
        write_qdq(model, make_scheme(model, ranges), Path(folder) / "int8.onnx")
        return (Path(folder) / "int8.onnx").read_bytes()


@functools.cache
def packed(name: str) -> bytes:
    """The same, packed."""
    return pack(quantized(name), {"made": "for a test"})


def thinned(data: bytes) -> bytes:
    """The bytes of a QDQ file whose weights are a tenth of what they were, and mostly 0."""
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            few = numpy_helper.to_array(tensor) // np.int8(10)
            tensor.CopyFrom(numpy_helper.from_array(few, tensor.name))
    return model.SerializeToString()
