"""``secateur.quantize``: quantizes a module or an ONNX file to int8 without training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from secateur import recipe
from secateur.console import say
from secateur.data import Images, Preparation
from secateur.errors import DataError, NetworkError, RecipeError, SecateurError
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model, write_model
from secateur.quantization.agreement import Agreement, agreement
from secateur.quantization.bits import BitPoint, scan_bits
from secateur.quantization.calibration_images import (
    CalibrationImages,
    ImageSource,
    calibration_images,
)
from secateur.quantization.importing import import_onnx
from secateur.quantization.post_training import (
    Calibration,
    Quantized,
    Resources,
    quantize_graph,
    weight_rule,
)
from secateur.quantization.qdq import to_qdq
from secateur.quantization.scheme import Scheme
from secateur.quantization.simulate import Simulated, unknown_operators
from secateur.quantization.validation import TargetSet, Validation, logits_of
from secateur.runtimes import OnnxRuntime
from secateur.training.evaluation import Scorer, scorer

THREADS = 2

COUNTED = 128
"""Number of images for the histograms of ranges, and for choices without labels."""

_MEMORY = 2**24
"""Largest number of elements of an activation while layers are rounded in turn."""

Labels = Tensor | npt.NDArray | Sequence[int]


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A quantized network.

    Attributes:
        model: The int8 graph in standard ONNX QDQ, with preparation and class names as metadata.
        parity: Agreement with the float network, on validation images or on some of the calibration
            images.
        chosen: Choices made by measurement, with the measurements, as plain data.
    """

    model: onnx.ModelProto
    parity: Agreement
    chosen: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write the network as one self-contained ONNX file; return its path.

        Raises:
            StoreError: The file cannot be written.
        """
        write_model(self.model, Path(path))
        return Path(path)


def quantize(
    model: nn.Module | str | Path,
    images: ImageSource,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preparation: Preparation | None = None,
    labels: Labels | None = None,
    validation: Images | tuple[ImageSource, Labels] | None = None,
    **options: Any,
) -> QuantizedNetwork:
    """Quantize a network to int8 without training.

    Convolutions and linear layers use int8 weights, with one scale for each output channel, and
    uint8 activations. Operators without an integer kernel, or that would lose accuracy, stay in
    float. By default, the method of ranges and the correction of biases are chosen by the
    cross-entropy on labeled images, or against the float network's probabilities without labels.

    Args:
        model: A module, exported at inference, or an ONNX file of opset 13 or newer from any
            exporter, with one float32 input (N, C, H, W) and one output (N, classes).
        images: Some hundred representative images: prepared, float32
            (N, C, H, W); or uint8 (N, C, H, W), (N, H, W, C) or (N, H, W), together with ``mean``
            and ``std``; or :class:`secateur.data.Images`.
        classes: Class names in the order of the outputs. Class names and preparation are stored in
            the file for ``secateur predict``; those of an ONNX file are kept.
        mean: For each channel, in units of [0, 1].
        std: For each channel, in units of [0, 1].
        preparation: Complete image preparation in place of ``mean`` and ``std``.
        labels: Class of each image, for choices by accuracy; shape (N,).
        validation: Other labeled images for choices.
        **options: Fields of a recipe's :class:`secateur.recipe.Quantize`, such as ``bits=4`` or
            ``rounding="adaptive"``. ``method`` is ``"auto"`` by default.

    Returns:
        The network, with its agreement with the float network.

    Raises:
        RecipeError: An option is unknown or its value is invalid.
        DataError: The images, labels or class names do not fit the network.
        NetworkError: The module cannot be exported.
        StoreError: The file cannot be read.
        SecateurError: The file is not an image classifier in standard ONNX operators.

    Example:
        >>> import secateur, torch
        >>> _ = torch.manual_seed(0)
        >>> conv, relu = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()
        >>> pool, last = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(8, 2)
        >>> network = torch.nn.Sequential(conv, relu, pool, torch.nn.Flatten(), last)
        >>> small = secateur.quantize(network, torch.randn(32, 3, 16, 16), method="minmax")
        >>> small.parity.images
        32
    """
    config = _config(options)
    source = _images(images, preparation, mean, std, labels, model)
    with _float_file(model, source) as path:
        graph = import_onnx(path, source[:2].numpy())
        reference = scorer(OnnxRuntime(path, THREADS))
        answers, known = _validation(source, validation, reference, config)
        _describe(graph, source, classes, preparation or _normalization(mean, std, source))
        _check_outputs(graph, answers.targets.shape[1], path)
        points: list[BitPoint] = []
        if config.bits == "mixed":
            stored = Images(answers.images, answers.targets.argmax(1), ())
            points = scan_bits(graph, stored, lambda pixels: pixels, rule=weight_rule(config))
        done = quantize_imported(graph, source, config, answers, points)
        quantized = to_qdq(done.model, done.scheme)
        parity = agreement(
            logits_of(run_graph(done.model, done.scheme), answers.images),
            logits_of(reference, answers.images),
            known,
        )
    say(f"quantize: {parity}")
    return QuantizedNetwork(quantized, parity, done.chosen)


def quantize_imported(
    graph: onnx.ModelProto,
    images: Calibration,
    config: recipe.Quantize,
    validation: Validation,
    points: Sequence[BitPoint] = (),
) -> Quantized:
    """Quantize a graph of :func:`secateur.quantization.importing.import_onnx`.

    Unlike :func:`secateur.quantization.post_training.quantize_graph`, it evaluates files in ONNX
    Runtime, so that operators that cannot be simulated are allowed. With such operators, biases are
    not corrected.

    Args:
        graph: Graph of a float file.
        images: Prepared training images, float32 (N, C, H, W).
        config: Options of the recipe.
        validation: Evaluates ``auto`` choices.
        points: Of :func:`secateur.quantization.bits.scan_bits`, for mixed bits.
    """
    problem = _cannot_simulate(graph, images[:1])
    if problem and config.correct_bias == "auto":
        say(f"quantize: biases are not corrected, because of {problem}")
    resources = Resources(validation, run_graph, COUNTED, 0 if problem else _MEMORY)
    return quantize_graph(graph, images, config, resources, points)


def require_simulated(graph: onnx.ModelProto, image: Tensor) -> None:
    """Check that the simulation, which training needs, computes what the graph computes.

    Args:
        graph: A float graph.
        image: Prepared, float32 (1, C, H, W).

    Raises:
        NetworkError: It does not, or an operator has no simulation.
    """
    if problem := _cannot_simulate(graph, image):
        raise NetworkError("cannot be trained with rounding", found=problem)


@torch.inference_mode()
def _cannot_simulate(graph: onnx.ModelProto, image: Tensor) -> str:
    """Why the simulation differs from the graph; empty if it does not."""
    unknown = unknown_operators(graph)
    if unknown:
        return f"operators {', '.join(unknown)}"
    try:
        simulated = Simulated(graph)(image)
    except (SecateurError, RuntimeError, TypeError, ValueError) as error:
        return f"an operator that cannot be simulated: {error}".splitlines()[0]
    expected = run_graph(graph, None)(image)
    largest = float(expected.abs().max())
    close = torch.allclose(simulated, expected, rtol=0, atol=1e-3 * largest + 1e-5)
    return "" if close else "an operator that is simulated inexactly"


def run_graph(model: onnx.ModelProto, scheme: Scheme | None) -> Scorer:
    """Run the quantized file of a float graph and a scheme as a function of tensors."""
    proto = model if scheme is None else to_qdq(model, scheme)
    return scorer(OnnxRuntime(proto.SerializeToString(), THREADS))


def _config(options: dict[str, Any]) -> recipe.Quantize:
    try:
        config = recipe.Quantize.model_validate({"method": "auto"} | options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise RecipeError(
            "an option of quantize that does not fit",
            where=key or "options",
            expected=problem["msg"],
            found=repr(problem["input"])[:80],
            remedy=f"the options are {', '.join(recipe.Quantize.model_fields)}",
        ) from None
    if config.epochs:
        raise RecipeError(
            "quantize does not train",
            where="epochs",
            expected=0,
            found=config.epochs,
            remedy="train with the rounding in a recipe, `secateur run`",
        )
    return config


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, images: CalibrationImages
) -> Preparation | None:
    height, width = images[:1].shape[2:]
    if mean is None or std is None or height != width:
        return None
    return Preparation(tuple(mean), tuple(std), int(height))


def _images(
    images: ImageSource,
    preparation: Preparation | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    labels: Labels | None,
    model: nn.Module | str | Path,
) -> CalibrationImages:
    if (mean is None) != (std is None) or (preparation is not None and mean is not None):
        raise DataError(
            "a preparation that is not complete",
            where="mean, std, preparation",
            expected="mean and std, or preparation alone",
            found=f"mean {mean}, std {std}, preparation {preparation}",
        )
    if preparation is None and mean is not None and std is not None:
        pixels = images.pixels if isinstance(images, Images) else images
        side = _side(model) or int(min(sorted(pixels.shape[1:])[-2:]))
        preparation = Preparation(tuple(mean), tuple(std), side)
    return calibration_images(images, preparation, labels)


def _side(model: nn.Module | str | Path) -> int:
    """The input side of a file; 0 if it is not fixed, or for a module."""
    if isinstance(model, nn.Module):
        return 0
    graph_input = read_model(Path(model)).graph.input[:1]
    sides = [dim.dim_value for value in graph_input for dim in value.type.tensor_type.shape.dim]
    return sides[2] if len(sides) == 4 else 0


@contextmanager
def _float_file(model: nn.Module | str | Path, images: CalibrationImages) -> Iterator[Path]:
    """Write the float network as a file."""
    if not isinstance(model, nn.Module):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        channels, height, width = images[:1].shape[1:]
        export_onnx(model, (channels, height, width), path, {}, straight=False)
        yield path


def _validation(
    images: CalibrationImages,
    validation: Images | tuple[ImageSource, Labels] | None,
    reference: Scorer,
    config: recipe.Quantize,
) -> tuple[TargetSet, Tensor | None]:
    """The validation set for choices, and its labels if there are any."""
    if isinstance(validation, Images):
        images = calibration_images(validation, images.prepare)
    elif validation is not None:
        images = calibration_images(validation[0], images.prepare, validation[1])
    chosen = images.spread(config.scan_images if images.labels is not None else COUNTED)
    prepared = images[chosen]
    answers = TargetSet.of_network(prepared, reference)
    if images.labels is None:
        return answers, None
    labels, outputs = images.labels[chosen], answers.targets.shape[1]
    if not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
        raise DataError(
            "labels that are not outputs of the network",
            where="labels",
            expected=f"0 to {outputs - 1}",
            found=f"{int(labels.min())} to {int(labels.max())}",
        )
    return TargetSet.of_labels(prepared, labels, outputs), labels


def _describe(
    graph: onnx.ModelProto,
    images: CalibrationImages,
    classes: Sequence[str] | None,
    preparation: Preparation | None,
) -> None:
    """Store class names and preparation in ``graph``, in addition to its metadata."""
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    if preparation is not None:
        metadata |= preparation.to_metadata()
    names = classes if classes is not None else images.classes
    if names is not None and (classes is not None or "classes" not in metadata):
        metadata["classes"] = json.dumps([str(name) for name in names])
    onnx.helper.set_model_props(graph, dict(sorted(metadata.items())))


def _check_outputs(graph: onnx.ModelProto, outputs: int, path: Path) -> None:
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    names = json.loads(metadata.get("classes", "null"))
    if names and len(names) != outputs:
        raise DataError(
            "class names do not fit the network",
            where=path.name,
            expected=f"{outputs} names, one for each output",
            found=f"{len(names)} names",
        )
