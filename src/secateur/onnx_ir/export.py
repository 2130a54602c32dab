"""Exports a trained network to an ONNX file with simplified operations."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from secateur.errors import NetworkError
from secateur.onnx_ir.model import OPSET, tidy, write_model
from secateur.onnx_ir.shuffles import straighten


def export_onnx(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    metadata: dict[str, str],
    *,
    straight: bool = True,
) -> None:
    """Write ``model`` in inference mode as a self-contained ONNX file.

    The graph reads ``image``, float32 (batch, C, H, W), and gives ``logits``, float32
    (batch, classes), for any batch. Batch-norms are folded into the preceding convolutions if
    ``torch.fx`` can trace the network. Otherwise, for example if its forward branches on shapes,
    the exporter's graph is used. The same weights give the same bytes, for any device and memory
    format.

    Args:
        model: Any network; it is left as it was.
        input_shape: Channels, height and width of an image.
        path: The file to write.
        metadata: Stored in the file, for example mean, standard deviation and classes.
        straight: Fold channel shuffles into the order of adjacent weights.

    Raises:
        NetworkError: The network cannot be exported.
        StoreError: The file cannot be written.
    """
    network = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    # Two images, because torch.export treats a batch size of one as a constant.
    images = torch.zeros(2, *input_shape)
    try:
        with quiet(), torch.no_grad():
            exported = _export(_simplified(network, images), images)
    except Exception as error:  # the tracer and the exporter may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NetworkError("cannot export the network", where=path.name, found=reason) from error
    proto = tidy(exported)
    if straight:
        proto = straighten(proto)
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    write_model(proto, path)


def _simplified(network: nn.Module, images: torch.Tensor) -> nn.Module:
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # the network's code may raise anything
        return network
    fold_batch_norms(traced)
    ShapeProp(traced).propagate(images)
    fold_repeated_pixels(traced)
    simplify_adaptive_pools(traced)
    return traced


def fold_batch_norms(traced: fx.GraphModule) -> None:
    """Fold, in place, each batch-norm that is the only reader of a convolution.

    W' = W gamma / sqrt(var + eps) per output channel, b' = (b - mean) gamma / sqrt(var + eps) +
    beta (Jacob et al. 2018, section 3.2), computed in float64 and rounded once.
    """
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not (isinstance(before, fx.Node) and before.op == "call_module"):
            continue
        norm, conv = modules[node.target], modules[str(before.target)]
        if not (isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)):
            continue
        calls = sum(other.target == before.target for other in traced.graph.nodes)
        if len(before.users) > 1 or calls > 1:
            continue
        folded = fuse_conv_bn_eval(conv.double(), norm.double()).float()
        parent, _, leaf = str(before.target).rpartition(".")
        setattr(traced.get_submodule(parent), leaf, folded)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()


def fold_repeated_pixels(traced: fx.GraphModule) -> None:
    """Remove, in place, adaptive pools that only repeat a single pixel for a linear layer.

    AlexNet at 64x64 ends in a 1x1 map that its pool repeats to 6x6. The linear layer reads each
    channel 36 times; the sum of the 36 weights reads it once with the same result.

    Args:
        traced: Graph with shapes from ``ShapeProp``.
    """
    modules = dict(traced.named_modules())
    for node, before, source, target in _adaptive_pools(traced):
        reader = _linear_reader(node, modules)
        calls = sum(reader is not None and n.target == reader.target for n in traced.graph.nodes)
        if reader is None or calls != 1 or source != (1, 1) or target == (1, 1):
            continue
        linear = modules[str(reader.target)]
        assert isinstance(linear, nn.Linear)
        pixels = target[0] * target[1]
        weight = linear.weight.double().reshape(linear.out_features, -1, pixels).sum(2).float()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.in_features = weight.shape[1]
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()


def _linear_reader(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The linear layer that is the only reader of ``node``, flattened."""
    flat = False
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            return node if flat else None
        if isinstance(module, nn.Flatten) or node.target is torch.flatten:
            flat = len(node.meta["tensor_meta"].shape) == 2
        elif not isinstance(module, nn.Dropout):
            return None
    return None


_Side = tuple[int, int]


def _adaptive_pools(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, _Side, _Side]]:
    """Yield each adaptive average pool, its input, and the height and width of input and output."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.AdaptiveAvgPool2d):
            (before,) = node.all_input_nodes
            source, target = (n.meta["tensor_meta"].shape[-2:] for n in (before, node))
            yield node, before, tuple(source), tuple(target)


def simplify_adaptive_pools(traced: fx.GraphModule) -> None:
    """Replace, in place, adaptive average pools by simpler operations at this input size.

    A pool to the input's own size is removed. A pool to a multiple of it becomes a repetition of
    pixels, and to a divisor an ordinary pool. Others are left to the exporter.

    Args:
        traced: Graph with shapes from ``ShapeProp``.
    """
    for node, _, source, target in _adaptive_pools(traced):
        simpler: nn.Module
        if source == target:
            simpler = nn.Identity()
        elif target == (1, 1):
            continue
        elif all(t % s == 0 for s, t in zip(source, target, strict=True)):
            factors = tuple(t / s for s, t in zip(source, target, strict=True))
            simpler = nn.Upsample(scale_factor=factors, mode="nearest")
        elif all(s % t == 0 for s, t in zip(source, target, strict=True)):
            simpler = nn.AvgPool2d((source[0] // target[0], source[1] // target[1]))
        else:
            continue
        parent, _, leaf = str(node.target).rpartition(".")
        setattr(traced.get_submodule(parent), leaf, simpler)


def _export(network: nn.Module, images: torch.Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's prints, warnings and log lines, but not errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
