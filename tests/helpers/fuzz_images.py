"""Image files and data-set files, mutated: each must give a clean error or an image.

Run: PYTHONPATH=tests python tests/helpers/fuzz_images.py --seconds 60 --out results/data/fuzz.json
     PYTHONPATH=tests python tests/helpers/fuzz_images.py --make-corpus

The seeds are the files of tests/corpus/images, one of each kind that is read or refused.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.fuzz import mutated
from secateur import environment
from secateur.errors import DataError
from secateur.imaging import Preparation, read_image

CORPUS = Path(__file__).parents[1] / "corpus" / "images"
PIXELS = 2**18
"""Largest width times height while fuzzing: decoding takes at most a few MB."""
SECONDS = 5
"""That one file may take."""
MEBIBYTES = 256
"""That a process may grow by over all its files."""

_PREPARATIONS = Preparation((0.5,), (0.5,), 8), Preparation((0.5,) * 3, (0.5,) * 3, 8, 9)


def seeds() -> dict[str, bytes]:
    """Name to content of every file in the corpus."""
    return {path.name: path.read_bytes() for path in sorted(CORPUS.iterdir())}


def outcome(data: bytes) -> str:
    """What a file comes to: an image, or the kind of error."""
    results = []
    for prepare in _PREPARATIONS:
        try:
            image = read_image(io.BytesIO(data), prepare.channels, limit=PIXELS)
        except DataError as error:
            results.append(f"error: {error.what}")
            continue
        square = prepare.fit(image)
        assert square.shape == (prepare.channels, prepare.side, prepare.side)
        assert square.dtype == np.uint8
        results.append("an image")
    assert results[0] == results[1], results
    return results[0]


def fuzz(seconds: float, seed: int) -> dict[str, Any]:
    """Mutate and read files for ``seconds``.

    Returns:
        Counts by outcome, the slowest file in seconds with its seed, and the growth of the
        process's peak memory in MiB.

    Raises:
        RuntimeError: A file ended in anything but an image or a clean error, or took too long.
    """
    rng, files, seen = random.Random(seed), seeds(), Counter[str]()
    for data in files.values():
        outcome(data)  # loads Pillow's plugins
    before, end = _peak(), time.monotonic() + seconds
    slowest = (0.0, "")
    while time.monotonic() < end:
        name = rng.choice(list(files))
        data = mutated(files[name], rng)
        start = time.perf_counter()
        try:
            seen[outcome(data)] += 1
        except BaseException as error:
            message = f"file {seen.total()} of seed {seed}, from {name}: {error!r}"
            raise RuntimeError(message) from error
        slowest = max(slowest, (time.perf_counter() - start, name))
        if slowest[0] > SECONDS:
            raise RuntimeError(f"file {seen.total()} of seed {seed}, from {name}: {slowest[0]} s")
    return {
        "files": seen.total(),
        "seen": dict(sorted(seen.items())),
        "slowest_seconds": round(slowest[0], 3),
        "slowest_from": slowest[1],
        "grown_mebibytes": round((_peak() - before) / 2**10, 1),
    }


def _peak() -> int:
    """The most memory that this process has held, in KiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def make_corpus() -> None:
    """Write the seeds anew."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    gray, alpha = color.convert("L"), color.copy()
    alpha.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    deep = Image.fromarray(rng.integers(0, 65536, (7, 9), dtype=np.uint16))
    for name, image, options in (
        ("gray.png", gray, {}),
        ("alpha.png", alpha, {"exif": exif}),
        ("gray-alpha.png", alpha.convert("LA"), {}),
        ("palette.png", color.quantize(5), {"transparency": 2}),
        ("deep.png", deep, {}),
        ("frames.png", gray, {"save_all": True, "append_images": [gray.rotate(180)]}),
        ("turned.jpg", color, {"exif": exif, "quality": 60}),
        ("progressive.jpg", color, {"progressive": True, "quality": 30}),
        ("cmyk.jpg", color.convert("CMYK"), {"quality": 30}),
        ("lossy.webp", color, {"quality": 20}),
        ("lossless.webp", alpha, {"lossless": True, "exif": exif}),
        ("frames.webp", gray, {"save_all": True, "append_images": [gray.rotate(180)]}),
        ("plain.tif", color, {}),
        ("lzw.tif", color, {"compression": "tiff_lzw"}),
        ("jpeg.tif", color, {"compression": "jpeg"}),
        ("deflate.tif", deep, {"compression": "tiff_adobe_deflate"}),
        ("float.tif", gray.convert("F"), {}),
        ("fax.tif", gray.convert("1"), {"compression": "group4"}),
        ("color.bmp", color, {}),
        ("palette.bmp", color.quantize(5), {}),
        ("color.ppm", color, {}),
        ("deep.pgm", deep.convert("I"), {}),
        ("another.gif", gray, {}),
        ("another.avif", color, {}),
    ):
        image.save(CORPUS / name, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make-corpus", action="store_true")
    options = parser.parse_args()
    if options.make_corpus:
        make_corpus()
        return
    record = fuzz(options.seconds, options.seed) | {
        "seed": options.seed,
        "seconds": options.seconds,
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }
    assert record["grown_mebibytes"] < MEBIBYTES, record
    text = json.dumps(record, indent=1) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
