"""The rows, in the order of the tables."""

from __future__ import annotations

from benchmarks.int8_rows import (
    OpenVino,
    PlainOnnxRuntime,
    as_it_is,
    nncf_quantize,
    onnxruntime_static,
)
from benchmarks.peers import onnx_rows, torch_rows
from benchmarks.peers.onnx_rows import from_float
from benchmarks.peers.row import Row
from secateur import runtimes

PACKAGES = (
    "openvino",
    "nncf",
    "torchao",
    "torch-pruning",
    "neural-compressor",
)
"""Packages whose versions are recorded."""

ALL_CHANNELS = "the shipped network has all channels: nothing to compare with"
"""Error of a row that prunes, for a network that is better not pruned."""

onnx_runtime = runtimes.OnnxRuntime

ROWS = {
    "eager": Row(
        "fp32, eager PyTorch",
        "eager", "reference", torch_rows.eager_float, torch_rows.Eager, "float",
    ),
    "fp32-onnxruntime": Row(
        "fp32, ONNX Runtime",
        "onnxruntime", "reference", from_float(as_it_is), onnx_runtime, "float",
    ),
    "fp32-openvino": Row(
        "fp32, OpenVINO", "openvino", "reference", from_float(as_it_is), OpenVino, "float"
    ),
    "torch.ao": Row(
        "torch.ao eager int8, fbgemm (the published route)",
        "eager", "reference", torch_rows.torch_ao_eager, torch_rows.EagerInt8, "int8",
    ),
    "quantize_static": Row(
        "ONNX Runtime `quantize_static`, defaults",
        "onnxruntime", "reference", from_float(onnxruntime_static()), PlainOnnxRuntime, "int8",
    ),
    "quantize_static-per-channel": Row(
        "ONNX Runtime `quantize_static`, `per_channel`, S8S8",
        "onnxruntime", "reference", onnx_rows.quantize_static_s8s8, PlainOnnxRuntime, "int8",
    ),
    "quantize_static-u8s8": Row(
        "ONNX Runtime `quantize_static`, `per_channel`, U8S8",
        "onnxruntime", "reference", onnx_rows.quantize_static_u8s8, PlainOnnxRuntime, "int8",
    ),
    "nncf": Row(
        "NNCF, defaults", "openvino", "reference", from_float(nncf_quantize), OpenVino, "int8"
    ),
    "nncf-controlled": Row(
        "NNCF, accuracy control",
        "openvino", "reference", onnx_rows.nncf_controlled, OpenVino, "int8",
    ),
    "torchao": Row(
        "torchao PT2E", "torch.compile", "reference",
        torch_rows.torchao_pt2e, torch_rows.Compiled, "int8",
    ),
    "torch-pruning": Row(
        "Torch-Pruning, fine-tuned, fp32",
        "onnxruntime", "torch-pruning", from_float(as_it_is), onnx_runtime, "pruned",
    ),
    "torch-pruning-int8": Row(
        "Torch-Pruning, fine-tuned, `quantize_static` `per_channel`, S8S8",
        "onnxruntime", "torch-pruning",
        onnx_rows.quantize_static_s8s8, PlainOnnxRuntime, "pruned",
    ),
    "torch-pruning-u8s8": Row(
        "Torch-Pruning, fine-tuned, `quantize_static` `per_channel`, U8S8",
        "onnxruntime", "torch-pruning",
        onnx_rows.quantize_static_u8s8, PlainOnnxRuntime, "pruned",
    ),
    "neural-compressor": Row(
        "Neural Compressor, static", "torch.compile", "reference",
        torch_rows.neural_compressor, torch_rows.Compiled, "int8",
    ),
    "ours-unpruned": Row(
        "**Secateur** int8, unpruned",
        "onnxruntime", "reference", onnx_rows.secateur_unpruned, onnx_runtime, "secateur",
    ),
    "ours-pruned": Row(
        "**Secateur** pruned, fp32",
        "onnxruntime", "pruned", onnx_rows.secateur_pruned_float, onnx_runtime, "secateur",
    ),
    "ours-int8": Row(
        "**Secateur** pruned and int8",
        "onnxruntime", "pruned", onnx_rows.secateur_pruned_int8, onnx_runtime, "secateur",
    ),
    "ours-int8-openvino": Row(
        "**Secateur** pruned and int8, the same file",
        "openvino", "pruned", onnx_rows.secateur_pruned_int8, runtimes.OpenVino, "secateur",
    ),
    "ours-packed": Row(
        "**Secateur** packed (`.sec`)",
        "onnxruntime", "pruned", onnx_rows.secateur_packed, onnx_rows.Packed, "secateur",
        raw=True, timed_as="ours-int8",
    ),
}  # fmt: skip
"""Rows by their key in records."""
