import numpy as np
import pytest

from secateur.quantization.affine import UINT8, Grid, from_range
from secateur.quantization.histogram import Histogram

RNG = np.random.default_rng(0)


def histogram(values):
    counted = Histogram()
    counted.add(values.astype(np.float32))
    return counted


def squared_error(values, bounds, grid):
    affine = from_range(*bounds, grid)
    return np.square(affine.dequantize(affine.quantize(values)) - values).mean()


@pytest.mark.parametrize("grid", [UINT8, Grid(4)])
@pytest.mark.parametrize("one_sided", [True, False])
def test_least_error_is_that_of_the_values_themselves(grid, one_sided):
    values = RNG.laplace(size=50_000)
    values = np.abs(values) if one_sided else values
    found = histogram(values).least_error(grid)
    low, high = values.min(), values.max()
    tried = [(a * low, b * high) for a in np.linspace(0.1, 1, 31) for b in np.linspace(0.1, 1, 31)]
    best = min(squared_error(values, bounds, grid) for bounds in tried)
    assert squared_error(values, found, grid) <= 1.05 * best
    assert squared_error(values, found, grid) < squared_error(values, (low, high), grid)


def test_an_outlier_is_clipped_and_a_bounded_tensor_is_not():
    values = RNG.uniform(0, 1, 100_000)
    for choose in (Histogram.least_error, Histogram.least_divergence):
        assert choose(histogram(values), UINT8)[1] == pytest.approx(1.0, abs=0.02)
    far = np.append(RNG.standard_normal(1_000_000), 60)
    for choose in (Histogram.least_error, Histogram.least_divergence):
        assert choose(histogram(far), UINT8)[1] < 50


def test_zeros_do_not_ask_for_a_narrow_range():
    values = np.abs(RNG.standard_normal(20_000))
    spiked = np.append(values, np.zeros(1_000_000))
    assert histogram(spiked).least_divergence(UINT8) == histogram(values).least_divergence(UINT8)


def test_divergence_by_hand():
    """Eight filled bins on a grid of four levels, nothing clipped."""
    counts = np.array([1, 3, 2, 2, 4, 4, 0, 8])
    values = np.repeat(np.arange(8) / 7, counts)
    counted = histogram(values)
    low, high = counted.least_divergence(Grid(2))
    assert 0 <= low <= high <= 1
    # The levels stand for {0, 1}, {2, 3}, {4, 5}, {6, 7}: only the first is uneven.
    from secateur.quantization import histogram as module

    centers, found = counted._filled()
    assert found.tolist() == [1, 3, 2, 2, 4, 4, 8]
    coarse = module._spread_over_levels(centers, found.astype(float), from_range(0, 1, Grid(2)))
    assert coarse.sum() == pytest.approx(found.sum())
    p, q = found / found.sum(), coarse / coarse.sum()
    assert module._divergence(found.astype(float), coarse) == pytest.approx(
        (p * np.log(p / q)).sum()
    )
    assert module._divergence(coarse, coarse) == 0


def test_a_constant_is_kept():
    for choose in (Histogram.least_error, Histogram.least_divergence):
        low, high = choose(histogram(np.full(100, 3.0)), UINT8)
        assert from_range(low, high, UINT8).dequantize(
            from_range(low, high, UINT8).quantize(np.array([3.0]))
        ) == pytest.approx(3.0, rel=0.01)
