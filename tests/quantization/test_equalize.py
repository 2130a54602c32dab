import numpy as np
import onnx
import torch
from torch import nn

from helpers.tiny_networks import images, settled
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, read_model
from secateur.quantization.calibrate import calibrate
from secateur.quantization.equalize import equalize, find_pairs
from secateur.quantization.scheme import make_scheme
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule


def uneven(activation=nn.ReLU):
    """Convolutions, one depthwise, whose channels differ a thousandfold, and undo it again."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), activation(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), activation(),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    settled(network, (3, 12, 12))
    scale = torch.logspace(-1.5, 1.5, 16)
    with torch.no_grad():
        network[0].weight *= scale.view(-1, 1, 1, 1)
        network[0].bias *= scale
        network[2].weight /= scale.view(-1, 1, 1, 1)
    return network


def exported(network, path):
    export_onnx(network, (3, 12, 12), path, {})
    return read_model(path)


def run(model, x):
    with torch.no_grad():
        return Simulated(model)(x)


def test_the_function_stays_and_the_ranges_meet(tmp_path):
    model, x = exported(uneven(), tmp_path / "f.onnx"), images((3, 12, 12), 8)
    before = model.SerializeToString()
    equal = equalize(model)
    assert model.SerializeToString() == before
    torch.testing.assert_close(run(equal, x), run(model, x), rtol=1e-4, atol=1e-4)
    pairs, graph = find_pairs(equal), Graph(equal)
    assert [(p.first.name, p.second.name) for p in pairs] == [
        ("conv_0", "conv_2"),
        ("conv_2", "conv_4"),
    ]
    for pair in pairs:
        first, second = graph.constant(pair.first.input[1]), graph.constant(pair.second.input[1])
        ours = np.abs(first).reshape(len(first), -1).max(1)
        theirs = second if second.shape[1] == 1 else second.swapaxes(0, 1)
        theirs = np.abs(theirs).reshape(len(first), -1).max(1)
        np.testing.assert_allclose(ours, theirs, rtol=0.01)


def test_one_scale_then_suffices(tmp_path):
    model, x = exported(uneven(), tmp_path / "f.onnx"), images((3, 12, 12), 64)
    rule = {"": WeightRule(per_channel=False)}

    def error(graph, path):
        onnx.save(graph, path)
        scheme = make_scheme(graph, calibrate(path, [x.numpy()], "minmax"), rule)
        with torch.no_grad():
            return (Simulated(graph, scheme)(x) - run(model, x)).norm()

    assert error(equalize(model), tmp_path / "e.onnx") < 0.3 * error(model, tmp_path / "m.onnx")


def test_relu6_becomes_relu_and_nothing_changes_below_6(tmp_path):
    network = uneven(nn.ReLU6)
    with torch.no_grad():
        network[0].weight /= 40  # so that no activation reaches 6
        network[0].bias /= 40
        network[2].bias /= 40
    model, x = exported(network, tmp_path / "f.onnx"), images((3, 12, 12), 8)
    equal = equalize(model)
    kinds = [node.op_type for node in equal.graph.node]
    assert "Clip" in {node.op_type for node in model.graph.node}
    assert "Clip" not in kinds
    assert kinds.count("Relu") == 2
    onnx.checker.check_model(equal, full_check=True)
    torch.testing.assert_close(run(equal, x), run(model, x), rtol=1e-4, atol=1e-5)


def test_what_is_read_twice_is_left_alone(tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            y = self.a(x).relu()
            return (y + self.c(self.b(y).relu())).mean((2, 3))

    torch.manual_seed(0)
    model = exported(Residual().eval(), tmp_path / "f.onnx")
    assert [p.first.input[1] for p in find_pairs(model)] == ["b.weight"]
