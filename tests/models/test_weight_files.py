"""Weights from files: prefixes, nesting, mismatches, and what is not loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.errors import NetworkError
from secateur.models.weight_files import load_weights, read_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def loaded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    target = network()
    load_weights(target, tensors, "test")
    return target.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "model.module.net."])
def test_prefixes_are_taken_off(prefix: str) -> None:
    state = network().state_dict()
    assert same(loaded({prefix + name: value for name, value in state.items()}), state)


def test_other_parts_of_a_checkpoint_are_left_out() -> None:
    state = network().state_dict()
    checkpoint = {f"model.{name}": value for name, value in state.items()}
    assert same(loaded(checkpoint | {"loss.weight": torch.ones(3)}), state)


def test_old_batch_norms_without_a_counter() -> None:
    state = network().state_dict()
    assert same(loaded({k: v for k, v in state.items() if "num_batches" not in k}), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_nested_checkpoints(tmp_path: Path, key: str) -> None:
    state, path = network().state_dict(), tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, key: state}, path)
    assert same(read_weights(path), dict(state))


def test_safetensors(tmp_path: Path) -> None:
    state, path = network().state_dict(), tmp_path / "weights.safetensors"
    save_file(state, path)
    assert same(read_weights(path), dict(state))


def test_a_pickled_network_is_not_loaded(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "network.pt")
    with pytest.raises(NetworkError, match=r"Python objects, which are not loaded .*network.pt"):
        read_weights(tmp_path / "network.pt")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NetworkError, match=name):
        read_weights(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot read weights .*none.pt"):
        read_weights(tmp_path / "none.pt")


def test_another_number_of_classes_is_named() -> None:
    state = network().state_dict() | {"3.weight": torch.zeros(5, 8), "3.bias": torch.zeros(5)}
    with pytest.raises(NetworkError, match=r"3.weight of shape \(3, 8\), found \(5, 8\)"):
        loaded(state)


def test_missing_and_unexpected_keys_are_named() -> None:
    state = network().state_dict()
    state["head.weight"] = state.pop("3.weight")
    with pytest.raises(NetworkError, match=r"expected 3.weight, found head.weight"):
        loaded(dict(state))
