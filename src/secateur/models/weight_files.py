"""Reads weights from files without running code, and loads them by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.disk import check_input
from secateur.errors import FileError, NetworkError

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Suffixes of files with weights."""

_NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
"""Keys under which checkpoints keep their weights: Lightning, torchvision, timm."""

_NAMED = 3  # keys that a message names; the rest is counted


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file or a checkpoint of ``torch.save``.

    Checkpoints are read with ``weights_only=True``: no code in them runs.

    Args:
        path: The file.

    Raises:
        NetworkError: The file is missing, damaged, or holds other objects than tensors.
    """
    try:
        check_input(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            "the file holds Python objects, which are not loaded",
            where=path,
            expected="tensors by name",
            remedy="save network.state_dict(), or give the network as file.py:function",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, FileError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError("cannot read weights", where=path, found=message) from error
    tensors = _tensors(content)
    if not tensors:
        raise NetworkError(
            "no weights in the file", where=path, expected="tensors by name",
            found=type(content).__name__, remedy="save network.state_dict()",
        )  # fmt: skip
    return tensors


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which may be nested under a common key."""
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Load tensors into a network by name, in place.

    A common prefix is removed, such as that of DataParallel (``module.``), Lightning (``model.``)
    or ``torch.compile`` (``_orig_mod.``).

    Args:
        network: Receives the weights.
        tensors: Result of :func:`read_weights`.
        where: Name of the file in messages.

    Raises:
        NetworkError: Names or shapes differ; the message names the first ones.
    """
    expected = network.state_dict()
    weights = _without_prefix(tensors, expected)
    weights |= {
        name: value
        for name, value in expected.items()
        if name.endswith("num_batches_tracked") and name not in weights
    }
    for name, value in expected.items():
        if name in weights and weights[name].shape != value.shape:
            raise NetworkError(
                "weights do not fit the network",
                where=where,
                expected=f"{name} of shape {tuple(value.shape)}",
                found=tuple(weights[name].shape),
                remedy="check the network's name, and the number of classes and channels",
            )
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected:
        raise NetworkError(
            "weights do not fit the network",
            where=where,
            expected=_names(missing) if missing else "no other keys",
            found=_names(unexpected) if unexpected else "no such keys",
            remedy="check the network's name",
        )
    network.load_state_dict(weights)


def _without_prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict:
    """Remove the prefix after which most names match the network."""
    first = next(iter(expected), "")
    prefixes = {name.removesuffix(first) for name in tensors if name.endswith(f".{first}")}

    def matches(prefix: str) -> int:
        return sum(f"{prefix}{name}" in tensors for name in expected)

    best = max(["", *sorted(prefixes)], key=matches)
    return {
        name.removeprefix(best): value for name, value in tensors.items() if name.startswith(best)
    }


def _names(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED])
    return shown if len(keys) <= _NAMED else f"{shown} and {len(keys) - _NAMED} more"
