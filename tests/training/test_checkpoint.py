from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.training.checkpoint import read_checkpoint, remove_checkpoints, write_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two checkpoints of one training: the newest, and the one before it."""
    path = tmp_path / "checkpoint.safetensors"
    for epoch in (1, 2):
        tensors = {"weight": torch.full((50, 3), float(epoch)), "steps": torch.tensor(epoch)}
        write_checkpoint(path, "training-a", tensors, {"epoch": epoch})
    return path


def epoch_of(path: Path, training: str = "training-a") -> int | None:
    checkpoint = read_checkpoint(path, training)
    if checkpoint is None:
        return None
    tensors, state = checkpoint
    assert (tensors["weight"] == state["epoch"]).all()
    return int(tensors["steps"])


def test_the_newest_is_read(path: Path) -> None:
    assert epoch_of(path) == 2


def test_none_is_there(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "checkpoint.safetensors", "training-a") is None


def test_every_truncation_is_refused_by_name(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert epoch_of(path) == 1
        refusal = "".join(capsys.readouterr().err.split())  # the console may wrap the line
        assert "checkpointrefused:notawholesafetensorsfile" in refusal
        assert path.name in refusal


def test_every_flipped_bit_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for position in range(0, len(content), 17):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        assert epoch_of(path) == 1, position


def test_a_checkpoint_of_another_training_is_refused_by_name(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert epoch_of(path, "training-b") is None
    refusal = " ".join(capsys.readouterr().err.split())
    assert refusal.count("another training's checkpoint") == 2
    assert "expected training-b, found training-a" in refusal


def test_a_write_that_is_killed_leaves_the_one_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.training.checkpoint.save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, "training-a", {}, {})
    assert epoch_of(path) == 2


def test_both_are_removed(path: Path) -> None:
    remove_checkpoints(path)
    assert list(path.parent.iterdir()) == []
