"""The code that is printed for users makes the tensor that Secateur makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur.imaging import Preparation, in_words, python_source, squares

PREPARATIONS = [
    Preparation((0.5,), (0.25,), 28),
    Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32, 37),
    Preparation((0.4,) * 3, (0.2,) * 3, 24, 30, "bicubic", squash=True, order="BGR"),
]


def files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (61, 90, 3), dtype=np.uint8))
    alpha = color.copy()
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (61, 90), dtype=np.uint8)))
    deep = Image.fromarray(rng.integers(0, 65536, (50, 40), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    color.save(folder / "turned.jpg", exif=exif)
    for name, image in {
        "color.png": color, "alpha.png": alpha, "gray-alpha.png": alpha.convert("LA"),
        "palette.png": color.quantize(17), "deep.png": deep, "print.tif": color.convert("CMYK"),
        "bits.bmp": color.convert("1"), "thin.png": color.crop((0, 0, 90, 2)),
    }.items():  # fmt: skip
        image.save(folder / name)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("prepare", PREPARATIONS)
def test_the_printed_code_makes_the_same_tensor(prepare: Preparation, tmp_path: Path) -> None:
    namespace: dict[str, object] = {}
    exec(python_source(prepare), namespace)
    levels = 2.01 if prepare.interpolation == "bicubic" else 1.01
    level = levels / 255 / min(prepare.std)
    for path in files(tmp_path):
        expected = prepare.normalized(np.stack(list(squares(path, prepare))))
        tensor = namespace["prepare"](path)  # type: ignore[operator]
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        assert tensor == pytest.approx(expected, abs=level), path


def test_the_words_name_every_step() -> None:
    words = in_words(PREPARATIONS[2])
    for part in ("to BGR", "resize it to 30x30", "bicubic, antialiased", "crop 24x24", "[0.4, 0.4"):
        assert part in words
