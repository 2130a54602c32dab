"""Builds a network from a library's name, a function in a file, or an exported program."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.disk import check_input
from secateur.errors import NetworkError
from secateur.imaging import Preparation
from secateur.models.weight_files import load_weights, read_weights

FORMS = "torchvision:NAME, timm:NAME, file.py:function or program.pt2"
"""Forms of a description."""


def build_described(description: str, classes: int, channels: int) -> nn.Module:
    """Build a network from its description, without published weights.

    Args:
        description: ``torchvision:NAME``, ``timm:NAME``, ``file.py:function``, which runs the code
            of that file, or ``program.pt2`` of ``torch.export.save``, which includes its weights.
        classes: Number of outputs.
        channels: Input channels; the first convolution is replaced if it has another number.

    Raises:
        NetworkError: There is no such network, or it cannot be built.
    """
    kind, _, name = description.partition(":")
    if kind == "torchvision":
        return with_channels(_from_torchvision(name, classes), channels)
    if kind == "timm":
        return _from_timm(name, classes, channels)
    if description.endswith(".pt2"):
        return _from_program(Path(description))
    path, _, function = description.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), function, classes, channels)
    raise NetworkError("unknown network", expected=FORMS, found=description)


def load_described(
    description: str, weights: Path | None, classes: int, channels: int
) -> nn.Module:
    """Build a network and load its weights; the result is in inference mode.

    Args:
        description: See :func:`build_described`.
        weights: File for :func:`secateur.models.weight_files.read_weights`. Without it, a library's
            network gets its published weights, which must have the same classes; a function's
            network keeps its own.
        classes: Number of outputs.
        channels: Input channels.

    Raises:
        NetworkError: The network cannot be built, or the weights do not fit it.
    """
    if weights is None and description.startswith(("torchvision:", "timm:")):
        network = _published(description, classes)
        if channels != 3:
            raise NetworkError(
                "published weights take color images", where=description, expected="3 channels",
                found=channels, remedy="give --weights",
            )  # fmt: skip
        return network.eval()
    network = build_described(description, classes, channels)
    if weights is not None:
        load_weights(network, read_weights(weights), weights)
    return network.eval() if not description.endswith(".pt2") else network


def published_preparation(description: str) -> Preparation | None:
    """The image preparation of a library's published weights; None if there is none."""
    kind, _, name = description.partition(":")
    if kind == "torchvision":
        from torchvision import models

        return Preparation.from_torchvision(models.get_model_weights(name).DEFAULT.transforms())
    if kind == "timm":
        config = _timm().get_pretrained_cfg(name, allow_unregistered=True)
        return None if config is None else Preparation.from_timm(config.to_dict())
    return None


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's printed structure and of its weights."""
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def with_channels(network: nn.Module, channels: int) -> nn.Module:
    """Change the number of input channels of the first convolution, in place.

    Raises:
        NetworkError: The network has no convolution.
    """
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(convolutions, ("", None))
    if first is None:
        raise NetworkError("a network without a convolution", where=type(network).__name__)
    if first.in_channels != channels:
        network.set_submodule(
            name,
            nn.Conv2d(
                channels, first.out_channels, first.kernel_size, first.stride,  # type: ignore[arg-type]
                first.padding, bias=first.bias is not None,  # type: ignore[arg-type]
            ),
        )  # fmt: skip
    return network


def _from_torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=None, num_classes=classes)
    except ValueError as error:
        raise _unknown("torchvision", name, models.list_models()) from error


def _timm() -> Any:
    try:
        import timm  # optional and slow to import
    except ImportError as error:
        raise NetworkError(
            "timm is not installed", remedy="pip install 'secateur[timm]'"
        ) from error
    return timm.models


def _from_timm(name: str, classes: int, channels: int) -> nn.Module:
    models = _timm()
    try:
        return models.create_model(name, num_classes=classes, in_chans=channels)
    except RuntimeError as error:
        raise _unknown("timm", name, models.list_models()) from error


def _unknown(library: str, name: str, known: list[str]) -> NetworkError:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else None
    return NetworkError(f"unknown network of {library}", found=name, remedy=remedy)


def _published(description: str, classes: int) -> nn.Module:
    kind, _, name = description.partition(":")
    try:
        if kind == "torchvision":
            from torchvision import models

            network = models.get_model(name, weights="DEFAULT")
        else:
            network = _timm().create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(
            "cannot get the published weights", where=description, found=message,
            remedy="give --weights",
        ) from error  # fmt: skip
    outputs = [m.out_features for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    if outputs != [classes]:
        raise NetworkError(
            "the published weights are of other classes", where=description,
            expected=f"{classes} classes, as in the data", found=outputs[0] if outputs else None,
            remedy="give --weights of the network that you trained",
        )  # fmt: skip
    return network


def _from_program(path: Path) -> nn.Module:
    check_input(path)
    try:
        return torch.export.load(path).module()
    except Exception as error:  # the reader may raise anything
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError("cannot read an exported program", where=path, found=message) from error


def _from_file(path: Path, function: str, classes: int, channels: int) -> nn.Module:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or specification is None or specification.loader is None:
        raise NetworkError("no such file", where=path, expected=FORMS)
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        build: Callable[..., Any] = getattr(module, function)
        network = build(**_arguments(build, classes, channels))
    except Exception as error:  # the user's code may raise anything
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NetworkError(
            "cannot build the network", where=f"{path}:{function}", found=message
        ) from error
    if not isinstance(network, nn.Module):
        raise NetworkError(
            "not a network", where=f"{path}:{function}", expected="a torch.nn.Module",
            found=type(network).__name__,
        )  # fmt: skip
    return network


def _arguments(build: Callable[..., Any], classes: int, channels: int) -> dict[str, int]:
    """Keyword arguments for those of ``classes`` and ``channels`` that the function accepts."""
    known = dict.fromkeys(("num_classes", "classes"), classes)
    known |= dict.fromkeys(("in_channels", "in_chans", "channels"), channels)
    accepted = inspect.signature(build).parameters
    return {name: value for name, value in known.items() if name in accepted}
