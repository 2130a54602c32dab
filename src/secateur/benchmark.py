"""How long one image takes."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from secateur.runtimes import Runtime


def latencies(
    runtimes: dict[str, Runtime], image: npt.NDArray[np.float32], warmup: int, repeats: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Time each runtime on one image, taking turns: A B C A B C ...

    Turns share a machine's slow moments evenly, so that ratios hold where absolute times drift.

    Args:
        runtimes: What to time, by name.
        image: One image, float32 (1, C, R, R).
        warmup: Rounds that are run first and not counted.
        repeats: Rounds that are counted.

    Returns:
        For each name, the milliseconds of each counted round, shape (repeats,), in order.

    Raises:
        ValueError: ``image`` is not one image, or ``repeats`` is not positive.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"need one image of shape (1, C, R, R), found {image.shape}")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"need repeats >= 1 and warmup >= 0, found {repeats} and {warmup}")
    samples = {name: np.empty(repeats) for name in runtimes}
    for turn in range(-warmup, repeats):
        for name, runtime in runtimes.items():
            start = time.perf_counter_ns()
            runtime.run(image)
            spent = time.perf_counter_ns() - start
            if turn >= 0:
                samples[name][turn] = spent / 1e6
    return samples
