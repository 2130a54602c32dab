"""Rows inside PyTorch: eager float, torch.ao's eager int8, torchao and Neural Compressor.

Compiled programs are exported at batch 1, the timed batch size, and evaluated one by one, so that
the timed program is the evaluated one.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from benchmarks.int8_rows import Array
from benchmarks.peers.row import CALIBRATED_ON, RowInput, RowOutput, has_vnni


class Eager:
    """A pickled module, channels last."""

    name, version = "eager", torch.__version__

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.backends.quantized.engine = "fbgemm"
        network = torch.load(path, weights_only=False).eval()
        self._network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        source = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        return self._network(source).numpy()


class EagerInt8(Eager):
    """torch.ao's quantized module, rebuilt from the float one, with the saved state.

    Pickled quantized modules cannot be loaded.
    """

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        network = _observed(torch.load(path.with_name("float.pt"), weights_only=False))
        self._network = _converted(network)
        self._network.load_state_dict(torch.load(path, weights_only=True))


class Compiled:
    """An exported program under ``torch.compile`` with frozen weights, at batch 1."""

    name, version = "torch.compile", torch.__version__

    def __init__(self, path: Path, threads: int) -> None:
        import torch._inductor.config as inductor

        # Makes the operators of a program known, so that it can be read, and registers the passes
        # that give it integer kernels: without them every run dequantizes the weights.
        importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
        torch.set_num_threads(threads)
        inductor.freezing = True  # without it weights stay float, and nothing runs in int8
        inductor.cpp.threads = threads
        self._network = torch.compile(torch.export.load(path).module())

    @torch.no_grad()
    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        ones = torch.from_numpy(images).split(1)
        return torch.cat([self._network(one) for one in ones]).numpy()


def eager_float(source: RowInput, folder: Path) -> RowOutput:
    """The trained module itself; its state is what ships."""
    return _pickled(source.module, folder)


def _pickled(network: nn.Module, folder: Path) -> RowOutput:
    opened, ships = folder / "network.pt", folder / "state.pt"
    torch.save(network, opened)
    torch.save(network.state_dict(), ships)
    return RowOutput(opened, [ships])


# ---- torch.ao, eager


def torch_ao_eager(source: RowInput, folder: Path) -> RowOutput:
    """The published method: fuse, observe one batch, convert, with fbgemm's configuration."""
    network = _observed(source.module)
    with torch.no_grad():
        network(torch.from_numpy(source.images[:CALIBRATED_ON]))
    torch.save(source.module, folder / "float.pt")
    path = folder / "state.pt"
    torch.save(_converted(network).state_dict(), path)
    return RowOutput(path, [path])


def _observed(network: nn.Module) -> nn.Module:
    from torch.ao import quantization

    torch.backends.quantized.engine = "fbgemm"
    made = quantizable(network)
    made.qconfig = quantization.get_default_qconfig("fbgemm")
    return quantization.prepare(made)


def _converted(network: nn.Module) -> nn.Module:
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that observers saw nothing, where a state is to come
        return quantization.convert(network)


def quantizable(network: nn.Module) -> nn.Module:
    """A copy of ``network`` that eager mode can quantize, its layers fused.

    torchvision has one for each network with residuals or concatenations, with ReLU for ReLU6,
    which eager mode cannot fuse.
    """
    from torch.ao.quantization import QuantWrapper, fuse_modules
    from torchvision.models import quantization as prepared

    name = type(network).__name__
    if name == "AlexNet":
        return QuantWrapper(fuse_modules(copy.deepcopy(network), _pairs(network)))
    build = {"MobileNetV2": prepared.mobilenet_v2, "ShuffleNetV2": prepared.shufflenet_v2_x1_0}
    made = build[name](num_classes=10, quantize=False).eval()
    _adopt(made, network)
    made.fuse_model(is_qat=False)
    if name == "ShuffleNetV2":
        made.conv5.append(Plain())
    return made


class Plain(nn.Module):
    """Changes the memory layout of a map of one pixel.

    Without it the quantized mean over such a map fails, because the result (N, C) cannot be
    channels last.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From (N, C, H, W) to the same values."""
        one_pixel = images.shape[-1] == 1
        return images.clone(memory_format=torch.contiguous_format) if one_pixel else images


def _adopt(made: nn.Module, network: nn.Module) -> None:
    """Copy the trained layers, including the first convolution and the strides of the stem."""
    for name, module in network.named_modules():
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Identity)):
            setattr(made.get_submodule(parent), leaf, copy.deepcopy(module))


def _pairs(network: nn.Module) -> list[list[str]]:
    """Names of each layer with weights and the ReLU that follows it."""
    names = [(name, module) for name, module in network.named_modules() if not [*module.children()]]
    return [
        [name, after]
        for (name, module), (after, activation) in pairwise(names)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and isinstance(activation, nn.ReLU)
    ]


# ---- PT2E


def torchao_pt2e(source: RowInput, folder: Path) -> RowOutput:
    """Torchao's PT2E for x86; activations to 7 bits where it advises so, without VNNI."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    config = x86.get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    quantizer.set_global(config)
    with torch.no_grad():
        exported = torch.export.export(source.module, _example(source)).module()
        prepared = _observe(prepare_pt2e(exported, quantizer), source)
        return _exported(convert_pt2e(prepared), source, folder)


def neural_compressor(source: RowInput, folder: Path) -> RowOutput:
    """Neural Compressor's static quantization of PyTorch on the CPU, which is PT2E as well."""
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import (
        convert,
        get_default_static_config,
        prepare,
    )

    with torch.no_grad():
        exported = export(source.module, example_inputs=_example(source))
        prepared = _observe(prepare(exported, get_default_static_config()), source)
        return _exported(convert(prepared), source, folder)


def _example(source: RowInput) -> tuple[torch.Tensor]:
    return (torch.from_numpy(source.images[:1]),)


def _observe(
    prepared: Callable[..., torch.Tensor], source: RowInput
) -> Callable[..., torch.Tensor]:
    for image in torch.from_numpy(source.images).split(1):
        prepared(image)
    return prepared


def _exported(converted: nn.Module, source: RowInput, folder: Path) -> RowOutput:
    _forget_unused(converted)
    path = folder / "quantized.pt2"
    torch.export.save(torch.export.export(converted, _example(source)), path)
    return RowOutput(path, [path])


def _forget_unused(graph: nn.Module) -> None:
    """Remove float weights that were replaced by integers; they would be saved too."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in {name for name, _ in graph.named_parameters()} - used:
        parent, _, leaf = name.rpartition(".")
        delattr(graph.get_submodule(parent), leaf)
