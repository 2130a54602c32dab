import itertools

import onnx
import pytest
import torch

from secateur.quantization.hessian import DAMPING, hessian_of, round_columns

GEMM = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)


@pytest.fixture
def inputs():
    """Four columns that move together; (500, 4)."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=random)
    return (mixing @ torch.randn(4, 500, generator=random)).T


def test_spreading_errors_comes_near_the_best_integers_there_are(inputs):
    random = torch.Generator().manual_seed(1)
    rows, delta = torch.randn(1, 20, 4, generator=random), torch.full((1, 20), 0.8)
    hessian = hessian_of(GEMM, (20, 4), inputs)
    found = round_columns(rows, delta, hessian, lambda q, _: q.round().clamp(-3, 3))

    def output_error(integers, row):
        return float((inputs @ (integers * 0.8 - row)).square().mean())

    nearest = (rows / 0.8).round().clamp(-3, 3)
    ours = theirs = best = 0.0
    every = torch.tensor(list(itertools.product(range(-3, 4), repeat=4)), dtype=torch.float32)
    for k in range(20):
        ours += output_error(found[0, k], rows[0, k])
        theirs += output_error(nearest[0, k], rows[0, k])
        best += min(output_error(integers, rows[0, k]) for integers in every)
    assert best <= ours < theirs
    assert ours - best < 0.5 * (theirs - best)


def test_a_column_costs_what_is_left_once_the_others_have_made_good(inputs):
    """The Schur complement: the error of one column when later ones are free to follow."""
    hessian = hessian_of(GEMM, (1, 4), inputs)
    full = inputs.T @ inputs / len(inputs)
    full += DAMPING * full.diagonal().mean() * torch.eye(4)
    order = hessian.order[0]
    assert order.tolist() == full.diagonal().argsort(descending=True).tolist()
    full = full[order][:, order].double()
    for k in range(4):
        rest = full[k + 1 :, k + 1 :]
        cross = full[k, k + 1 :]
        left = full[k, k] - cross @ torch.linalg.solve(rest, cross) if k < 3 else full[k, k]
        assert hessian.weights[0, k] == pytest.approx(float(left), rel=1e-4)


def test_a_column_that_copies_another_is_free(inputs):
    twice = torch.cat([inputs, inputs[:, :1]], dim=1)
    rows = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(2))
    found = round_columns(
        rows, torch.ones(1, 1), hessian_of(GEMM, (1, 5), twice), lambda q, _: q.round()
    )
    wanted = rows[0, 0, 0] + rows[0, 0, 4]
    assert abs(float(found[0, 0, 0] + found[0, 0, 4] - wanted)) < 1


def test_weights_that_are_zero_stay_zero(inputs):
    """Copies of a column could make good for each other's errors; pruned ones must not."""
    rows = torch.tensor([[[0.45, 0.0, 0.0, 0.0]]])
    copies = inputs[:, :1] * torch.tensor([1.2, 1.1, 1.0, 0.9]) + 1e-3 * inputs
    found = round_columns(
        rows, torch.ones(1, 1), hessian_of(GEMM, (1, 4), copies), lambda q, _: q.round()
    )
    assert not found.any()
