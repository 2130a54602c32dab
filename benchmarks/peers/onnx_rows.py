"""Rows from the exported float file: int8 of ONNX Runtime, NNCF and Secateur."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import secateur
from benchmarks.int8_rows import Array, Make, nncf_quantize, onnxruntime_static
from benchmarks.peers.row import RowInput, RowOutput, has_vnni
from secateur import recipe
from secateur.data import Images, batches
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model
from secateur.quantization.post_training import Resources, quantize_graph
from secateur.quantization.qdq import write_qdq
from secateur.quantization.validation import ValidationSet

VALIDATED_ON = 2000
"""Number of validation images for tools that need them."""
MAX_DROP = 0.003
"""Allowed loss of NNCF's accuracy control on these images."""
BATCH = 50


def from_float(make: Make) -> Any:
    """A row that needs the float file and images only."""

    def made(source: RowInput, folder: Path) -> RowOutput:
        files = make(source.onnx, source.images, folder)
        return RowOutput(files[0], files)

    return made


def quantize_static_s8s8(source: RowInput, folder: Path) -> RowOutput:
    """Signed activations, the default; with 7-bit weights without VNNI, as its manual advises."""
    return _quantize_static(source, folder)


def quantize_static_u8s8(source: RowInput, folder: Path) -> RowOutput:
    """Unsigned activations, for the instructions of x86; 7-bit weights without VNNI."""
    from onnxruntime.quantization import QuantType

    return _quantize_static(source, folder, activation_type=QuantType.QUInt8)


def _quantize_static(source: RowInput, folder: Path, **options: Any) -> RowOutput:
    make = onnxruntime_static(per_channel=True, reduce_range=not has_vnni(), **options)
    files = make(source.onnx, source.images, folder)
    return RowOutput(files[0], files)


# ---- NNCF with accuracy control


def nncf_controlled(source: RowInput, folder: Path) -> RowOutput:
    """NNCF with accuracy control, which returns layers to float until the loss is small.

    At another resolution, for which the network was not trained, the same layers are in float as at
    its own.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(source.onnx)
    calibration = nncf.Dataset([source.images[i : i + 1] for i in range(len(source.images))])
    if source.notes is not None:
        if "kept_float" not in source.notes:
            raise ValueError("which layers stay in float is known once accuracy is measured")
        scope = nncf.IgnoredScope(names=source.notes["kept_float"])
        done = nncf.quantize(
            model, calibration, subset_size=len(source.images), ignored_scope=scope
        )
        return _saved(done, folder, source.notes["kept_float"])
    some = source.validation.spread(VALIDATED_ON)
    done = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        nncf.Dataset(_labeled(some, source), lambda item: item[0]),
        _accuracy,
        max_drop=MAX_DROP,
        subset_size=len(source.images),
    )
    quantized = openvino.Core().read_model(nncf_quantize(source.onnx, source.images, folder)[0])
    return _saved(done, folder, sorted(_rounded(quantized) - _rounded(done)))


def _labeled(images: Images, source: RowInput) -> list[tuple[Array, int]]:
    prepared = (image for batch in batches(images, source.prepare, BATCH) for image in batch)
    return [(p[None], int(label)) for p, label in zip(prepared, images.labels, strict=True)]


def _accuracy(network: Any, items: Any) -> tuple[float, list[float]]:
    """Mean accuracy and correctness of each image, as NNCF requires."""
    output = network.output(0)
    right = [float(network(image)[output].argmax() == label) for image, label in items]
    return float(np.mean(right)), right


def _rounded(model: Any) -> set[str]:
    """Names of the layers with weights that read rounded activations."""
    kinds = {"Convolution", "GroupConvolution", "MatMul"}
    return {
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in kinds
        and node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }


def _saved(model: Any, folder: Path, kept_float: list[str]) -> RowOutput:
    import openvino

    path = folder / "controlled.xml"
    openvino.save_model(model, path)
    return RowOutput(path, [path, path.with_suffix(".bin")], {"kept_float": kept_float})


# ---- Secateur's own


def secateur_unpruned(source: RowInput, folder: Path) -> RowOutput:
    """The reference network quantized by ``secateur quantize``, without pricing."""
    return _quantized(source, source.files.get("reference"), folder)


def secateur_pruned_int8(source: RowInput, folder: Path) -> RowOutput:
    """The file of the recipe, or one like it at another resolution."""
    if "quantized" in source.files:
        return _single_file(source.files["quantized"])
    return _quantized(source, None, folder)


def secateur_pruned_float(source: RowInput, folder: Path) -> RowOutput:
    """The pruned network, retrained."""
    return _single_file(source.files.get("pruned") or _export(source, folder))


def secateur_packed(source: RowInput, folder: Path) -> RowOutput:
    """The small file, which unpacks to the quantized one bit for bit."""
    return _single_file(source.files["packed"])


def _single_file(path: Path) -> RowOutput:
    return RowOutput(path, [path])


def _export(source: RowInput, folder: Path) -> Path:
    path = folder / "float.onnx"
    export_onnx(source.module, source.images.shape[1:], path, {})
    return path


def _quantized(source: RowInput, float_path: Path | None, folder: Path) -> RowOutput:
    """Quantize a float file, with validation if it was trained at this geometry."""
    config = source.quantize.model_copy(update={"price": 0.0, "epochs": 0})
    some = source.validation.spread(VALIDATED_ON)
    validation = ValidationSet(some, source.prepare) if float_path else None
    if validation is None:  # other options change numbers, not latency
        config = recipe.Quantize(
            block=config.block, saturation_free=config.saturation_free, correct_bias=False
        )
    graph = read_model(float_path or _export(source, folder))
    images = torch.from_numpy(source.images)
    done = quantize_graph(graph, images, config, Resources(validation))
    path = folder / "secateur.onnx"
    write_qdq(done.model, done.scheme, path)
    return _single_file(path)


class Packed:
    """A packed file as users open it: stored pixels in, probabilities out."""

    name, version = "onnxruntime", secateur.__version__

    def __init__(self, path: Path, threads: int) -> None:
        self._network = secateur.load(path, threads=threads)

    def run(self, images: Any) -> Array:
        """Return float32 probabilities (N, classes) for pixels, uint8 (N, C, H, W)."""
        return self._network(images)
