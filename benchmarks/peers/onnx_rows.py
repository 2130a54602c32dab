"""What is made of the exported float file: ONNX Runtime's int8, NNCF's, Secateur's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8_peers import Array, Make, nncf_quantize, onnxruntime_static

import secateur
from peers.given import Given, Made, has_vnni
from secateur import recipe
from secateur.data import Images, batches
from secateur.onnx_ir.export import export_onnx
from secateur.quantization.qdq import write_qdq
from secateur.quantization.quantize import quantize
from secateur.quantization.validation import Judge

VALIDATED_ON = 2000
"""Validation images that whoever asks may look at."""
MAX_DROP = 0.003
"""Accuracy on them that NNCF's accuracy control may lose."""
BATCH = 50


def from_float(make: Make) -> Any:
    """A row that needs the float file and images alone."""

    def made(given: Given, folder: Path) -> Made:
        files = make(given.onnx, given.images, folder)
        return Made(files[0], files)

    return made


def quantize_static_per_channel(given: Given, folder: Path) -> Made:
    """With 7 bits of weights where its manual advises so, without VNNI."""
    make = onnxruntime_static(per_channel=True, reduce_range=not has_vnni())
    files = make(given.onnx, given.images, folder)
    return Made(files[0], files)


# ---- NNCF with accuracy control


def nncf_controlled(given: Given, folder: Path) -> Made:
    """NNCF that puts layers back into float until validation loses little enough.

    At another resolution, where the network was never trained and validation says nothing, the
    layers stay in float that did at its own.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(given.onnx)
    calibration = nncf.Dataset([given.images[i : i + 1] for i in range(len(given.images))])
    if given.said is not None:
        if "kept_float" not in given.said:
            raise ValueError("which layers stay in float is known once accuracy is measured")
        scope = nncf.IgnoredScope(names=given.said["kept_float"])
        done = nncf.quantize(model, calibration, subset_size=len(given.images), ignored_scope=scope)
        return _saved(done, folder, given.said["kept_float"])
    some = given.validation.spread(VALIDATED_ON)
    done = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        nncf.Dataset(_labeled(some, given), lambda item: item[0]),
        _accuracy,
        max_drop=MAX_DROP,
        subset_size=len(given.images),
    )
    whole = openvino.Core().read_model(nncf_quantize(given.onnx, given.images, folder)[0])
    return _saved(done, folder, sorted(_rounded(whole) - _rounded(done)))


def _labeled(images: Images, given: Given) -> list[tuple[Array, int]]:
    prepared = (image for batch in batches(images, given.prepare, BATCH) for image in batch)
    return [(p[None], int(label)) for p, label in zip(prepared, images.labels, strict=True)]


def _accuracy(network: Any, items: Any) -> tuple[float, list[float]]:
    """The mean, and image by image whether it was right, as NNCF wants it."""
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


def _saved(model: Any, folder: Path, kept_float: list[str]) -> Made:
    import openvino

    path = folder / "controlled.xml"
    openvino.save_model(model, path)
    return Made(path, [path, path.with_suffix(".bin")], {"kept_float": kept_float})


# ---- Secateur's own


def ours_unpruned(given: Given, folder: Path) -> Made:
    """The reference network as ``secateur quantize`` makes it, the search for a price left out."""
    return _ours(given, given.files.get("reference"), folder)


def ours_pruned_int8(given: Given, folder: Path) -> Made:
    """The file of the recipe, or one like it at another resolution."""
    if "quantized" in given.files:
        return _there(given.files["quantized"])
    return _ours(given, None, folder)


def ours_pruned_float(given: Given, folder: Path) -> Made:
    """The pruned network, retrained."""
    return _there(given.files.get("pruned") or _export(given, folder))


def ours_packed(given: Given, folder: Path) -> Made:
    """The small file, which unpacks to the quantized one bit for bit."""
    return _there(given.files["packed"])


def _there(path: Path) -> Made:
    return Made(path, [path])


def _export(given: Given, folder: Path) -> Path:
    path = folder / "float.onnx"
    export_onnx(given.module, given.images.shape[1:], path, {})
    return path


def _ours(given: Given, float_path: Path | None, folder: Path) -> Made:
    """Quantize a float file; validation is asked only where it means something."""
    config = given.quantize.model_copy(update={"price": 0.0, "epochs": 0})
    some = given.validation.spread(VALIDATED_ON)
    judge = Judge(some, given.prepare) if float_path else None
    if judge is None:  # what else a recipe may ask for changes numbers, not time
        config = recipe.Quantize(
            block=config.block, saturation_free=config.saturation_free, correct_bias=False
        )
    source = float_path or _export(given, folder)
    done = quantize(source, torch.from_numpy(given.images), config, judge)
    path = folder / "ours.onnx"
    write_qdq(done.model, done.scheme, path)
    return _there(path)


class Packed:
    """A packed file as users open it: stored pixels in, probabilities out."""

    name, version = "onnxruntime", secateur.__version__

    def __init__(self, path: Path, threads: int) -> None:
        self._network = secateur.load(path, threads=threads)

    def run(self, images: Any) -> Array:
        """Return float32 probabilities (N, classes) for pixels, uint8 (N, C, H, W)."""
        return self._network(images)
