"""Shared by all tests: one thread, so that parallel workers do not fight over two cores.

Property tests try the same examples every time; with HYPOTHESIS_PROFILE=random (`make fuzz`) they
explore new ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, database=None, print_blob=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe that goes down the whole chain in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        """
name = "tiny"
data = { name = "folder", validation = 0.25 }
network = { name = "shufflenet_v2_x1_0", resolution = 16 }
train = { epochs = 2, batch_size = 8, learning_rate = 0.05, ema = 0.9 }
scan = { fractions = [0.2, 0.5], layer_fractions = [0.5], images = 4, tolerance = 99 }
prune = { rounds = 1, epochs = 1 }
quantize = { images = 8 }
bench = { threads = 1, warmup = 1, repeats = 3 }
"""
    )
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes that any network can tell apart: 16x16 images, bright left or bright right."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("left", "right")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 60, (16, 16, 3), generator=generator)
                pixels[:, 8 * label : 8 * label + 8] += 150
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")
    return tmp_path / "images"
