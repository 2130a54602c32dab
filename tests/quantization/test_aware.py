import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny_networks import NETWORKS, exported, images
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model
from secateur.quantization.affine import UINT8, Affine, Grid, from_range
from secateur.quantization.aware import Step, Trainable
from secateur.quantization.calibrate import calibrate
from secateur.quantization.parity import compare
from secateur.quantization.qdq import write_qdq
from secateur.quantization.scheme import make_scheme
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule, is_saturation_free
from secateur.runtimes import OnnxRuntime


def trainable(name, path, bits):
    shape = exported(name, path)
    x, rules = images(shape, 32, seed=2), {"": WeightRule(bits)}
    model = read_model(path)
    scheme = make_scheme(model, calibrate(path, [x.numpy()], "minmax"), rules)
    return Trainable(model, scheme, rules), model, x


@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_was_trained_is_what_ships(name, tmp_path):
    network, model, x = trainable(name, tmp_path / "f.onnx", 4)
    labels = torch.arange(32) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    scheme = network.learned()
    with torch.no_grad():
        trained, shipped = network.eval()(x), Simulated(model, scheme)(x)
    torch.testing.assert_close(trained, shipped, rtol=0, atol=0.01 * float(trained.abs().max()))
    write_qdq(model, scheme, tmp_path / "q.onnx")
    runtime = OnnxRuntime(tmp_path / "q.onnx", 1)
    assert compare(runtime, Simulated(model, scheme), [x.numpy()]).agreement > 0.9


def test_a_clip_can_still_be_absorbed_after_its_step_has_grown(tmp_path):
    network, model, _ = trainable("mobilenet", tmp_path / "f.onnx", 8)
    with torch.no_grad():
        for step in network.quantizers.values():
            step.delta.mul_(100)
    write_qdq(model, network.learned(), tmp_path / "q.onnx")
    kinds = {node.op_type for node in read_model(tmp_path / "q.onnx").graph.node}
    assert "Clip" not in kinds


def test_a_step_cannot_vanish(tmp_path):
    network, model, _ = trainable("mobilenet", tmp_path / "f.onnx", 8)
    steps = [*network.quantizers.values(), *network.weight_steps.values()]
    before = [step.bounded().detach().clone() for step in steps]
    with torch.no_grad():
        for step in steps:
            step.delta.fill_(-1.0)
    for step, start in zip(steps, before, strict=True):
        torch.testing.assert_close(step.bounded(), start / 64, rtol=0.01, atol=0)
    write_qdq(model, network.learned(), tmp_path / "q.onnx")


def test_eight_bits_stay_free_of_saturation(tmp_path):
    network, _, _ = trainable("shufflenet", tmp_path / "f.onnx", 8)
    with torch.no_grad():
        for weight in network.weights.values():
            weight.mul_(3)  # beyond the grid, where it is clipped
    assert all(is_saturation_free(x.integers) for x in network.learned().layers.values())


@pytest.mark.parametrize("grid", [UINT8, Grid(4, signed=True, symmetric=True)])
def test_the_step_gets_the_gradient_of_learned_step_size_quantization(grid):
    """Esser et al. 2020, eq. 3: q - x / s inside, the bound outside; here with a zero point."""
    affine = from_range(-1.0, 2.0, grid)
    step = Step(affine)
    x = torch.linspace(-4, 5, 91, requires_grad=True)[None]
    x.retain_grad()
    weight = torch.arange(91.0)
    (step(x)[0] * weight).sum().backward()
    s, z = float(affine.delta), int(affine.zero_point)
    v = x.detach()[0].numpy() / np.float32(s)
    q = np.rint(v) + z
    inside = (q >= grid.low) & (q <= grid.high)
    slope = np.where(inside, np.rint(v) - v, np.clip(q, grid.low, grid.high) - z)
    expected = (slope * weight.numpy()).sum() / np.sqrt(91 * grid.high)
    assert step.delta.grad.item() == pytest.approx(expected, rel=1e-4)
    assert (x.grad[0].numpy() == np.where(inside, weight.numpy(), 0)).all()
    assert inside.any()
    assert not inside.all()


def test_each_channel_learns_a_step_of_its_own():
    affine = Affine(
        np.array([0.1, 0.2], np.float32),
        np.zeros(2, np.int32),
        Grid(4, signed=True, symmetric=True),
        axis=0,
    )
    step = Step(affine)
    x = torch.tensor([[0.13, 0.26], [9.0, 9.0]])
    step(x).sum().backward()
    assert step.delta.grad.shape == (2,)
    assert step.delta.grad[1] == pytest.approx(14 / (2 * 7) ** 0.5)
    assert step(x)[1].tolist() == pytest.approx([1.4, 1.4])


def test_pruned_layers_keep_their_zeros(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        network[1].weight[torch.rand(16, 48) < 0.5] = 0
    export_onnx(network, (3, 4, 4), tmp_path / "f.onnx", {})
    model, x = read_model(tmp_path / "f.onnx"), torch.randn(8, 3, 4, 4)
    scheme = make_scheme(model, calibrate(tmp_path / "f.onnx", [x.numpy()], "minmax"))
    masks = Trainable(model, scheme, {}).masks()
    ((_, kept),) = masks.items()
    assert (kept.numpy() == (network[1].weight.numpy(force=True) != 0)).all()


def test_copies_share_nothing(tmp_path):
    """The trainer keeps an average of the network, which is a deep copy."""
    network, _, x = trainable("shufflenet", tmp_path / "f.onnx", 8)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        before = twin(x)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
        assert not torch.equal(network(x), before)
