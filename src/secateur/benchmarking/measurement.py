"""Accuracy, size and latency of the exported files, read from disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur import recipe
from secateur.benchmarking.timing import latencies
from secateur.console import progress
from secateur.data import Images, Preparation, batches
from secateur.runtimes import Runtime, open_file
from secateur.training.evaluation import evaluate, scorer

BATCH = 100


def measure(
    files: Mapping[str, Path], test: Images, prepare: Preparation, config: recipe.Bench
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Run each file on the test images, and time all files on one image in turns.

    Args:
        files: From variant to its ONNX file.
        test: The test images, on the CPU.
        prepare: Maps stored pixels to the files' input.
        config: Threads, repeats and warm-up.

    Returns:
        Plain data (runtime, threads, fingerprint of the images; for each variant its bytes and
        every timing in ms), and the logits of each variant, shape (n, classes).

    Raises:
        SecateurError: A file is missing, corrupt, or cannot be run.
    """
    runtimes: dict[str, Runtime] = {
        variant: open_file(path, config.threads, config.runtime) for variant, path in files.items()
    }
    image = next(batches(test, prepare, 1))
    samples = latencies(runtimes, image, config.warmup, config.repeats)
    logits, labels = {}, test.labels.numpy()
    with progress("test set", len(files)) as tick:
        for variant, runtime in runtimes.items():
            pairs = evaluate(scorer(runtime), test, prepare, BATCH)
            logits[variant] = torch.cat([scores for scores, _ in pairs]).numpy()
            right = logits[variant].argmax(1) == labels
            tick.advance(note=f"{variant} {100 * right.mean():.2f} %")
    first = next(iter(runtimes.values()))
    measured = {
        "runtime": f"{first.name} {first.version}",
        "threads": config.threads,
        "test_fingerprint": test.fingerprint,
        "variants": {
            variant: {
                "size_bytes": path.stat().st_size,
                "latencies_ms": [round(float(sample), 5) for sample in samples[variant]],
            }
            for variant, path in files.items()
        },
    }
    return measured, logits
