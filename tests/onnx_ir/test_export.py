import onnx
import pytest
import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from helpers.tiny_networks import NETWORKS, images
from secateur.errors import NetworkError, StoreError
from secateur.onnx_ir.export import export_onnx, fold_batch_norms, simplify_adaptive_pools
from secateur.runtimes import OnnxRuntime

METADATA = {"mean": "[0.5]", "classes": '["cat", "dog"]'}


@pytest.mark.parametrize(
    ("name", "channels"), [("shufflenet", 1), ("mobilenet", 3), ("alexnet", 1)]
)
def test_exported_file_says_what_the_network_says(name, channels, tmp_path, capfd):
    make, (_, *sides) = NETWORKS[name]
    shape = (channels, *sides)
    network, path = make(channels), tmp_path / "network.onnx"
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export_onnx(network, shape, path, METADATA)

    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    for count in (1, 5):
        x = images(shape, count)
        with torch.no_grad():
            expected = network(x).numpy()
        assert OnnxRuntime(path, 1).run(x.numpy()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "ReduceMean", "Identity", "Dropout", "GatherND"}
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]


def test_same_weights_same_bytes_and_no_trace_of_the_machine(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(26), nn.Flatten()
    )
    export_onnx(network, (1, 28, 28), tmp_path / "a.onnx", METADATA)
    channels_last = network.to(memory_format=torch.channels_last).train()
    export_onnx(channels_last, (1, 28, 28), tmp_path / "b.onnx", dict(reversed(METADATA.items())))
    first = (tmp_path / "a.onnx").read_bytes()
    assert first == (tmp_path / "b.onnx").read_bytes()
    assert channels_last.training
    for trace in (b"torch", b"site-packages", b".py", b"/home", b"stack_trace", b"forward"):
        assert trace not in first
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_batch_norms_are_folded_before_export():
    # The exporter folds too, in some versions; the file must not depend on that.
    make, shape = NETWORKS["shufflenet"]
    network, x = make(), images(shape, 4)
    traced = torch.fx.symbolic_trace(network)
    fold_batch_norms(traced)
    assert not any("BatchNorm" in type(m).__name__ for m in called_modules(traced))
    assert torch.allclose(traced(x), make()(x), rtol=1e-4, atol=1e-5)


def called_modules(traced):
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert nodes
    return [traced.get_submodule(node.target) for node in nodes]


def test_a_batch_norm_behind_a_shared_convolution_stays(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.running_mean, 0.7)

        def forward(self, x):
            x = self.conv(x)
            return (x + self.norm(x)).mean([2, 3])

    network, x = Shared().eval(), images((3, 8, 8), 2)
    export_onnx(network, (3, 8, 8), tmp_path / "shared.onnx", {})
    with torch.no_grad():
        expected = network(x).numpy()
    found = OnnxRuntime(tmp_path / "shared.onnx", 1).run(x.numpy())
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("side", "kind"), [(1, nn.Upsample), (3, nn.Upsample), (6, nn.Identity), (12, nn.AvgPool2d)]
)
def test_adaptive_pools_become_what_they_are(side, kind):
    network = nn.Sequential(nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten())
    x = images((4, side, side), 2)
    traced = torch.fx.symbolic_trace(network)
    ShapeProp(traced).propagate(x)
    simplify_adaptive_pools(traced)
    assert isinstance(traced.get_submodule("0"), kind)
    assert torch.allclose(traced(x), network(x), atol=1e-6)


def test_untraceable_network_is_one_line(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(NetworkError, match="cannot export the network") as caught:
        export_onnx(Branching(), (1, 4, 4), tmp_path / "x.onnx", {})
    assert "\n" not in str(caught.value)


def test_unwritable_folder_is_one_line(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(StoreError, match="cannot write"):
        export_onnx(network, (1, 4, 4), tmp_path / "missing" / "x.onnx", {})


def test_channel_shuffles_are_folded_into_the_weights(tmp_path):
    make, shape = NETWORKS["shufflenet"]
    export_onnx(make(), shape, tmp_path / "f.onnx", {})
    kinds = {node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node}
    assert "Transpose" not in kinds
    assert {"Split", "Concat"} <= kinds


def test_a_linear_layer_reads_a_repeated_pixel_once(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5),
        nn.AdaptiveAvgPool2d((6, 6)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(288, 4),
    ).eval()
    for side, columns in ((5, 8), (6, 288)):  # maps of 1x1 and 2x2
        x = torch.randn(2, 3, side, side)
        export_onnx(network, (3, side, side), tmp_path / "f.onnx", {})
        model = onnx.load(tmp_path / "f.onnx")
        (gemm,) = (node for node in model.graph.node if node.op_type == "Gemm")
        weight = next(t for t in model.graph.initializer if t.name == gemm.input[1])
        assert weight.dims[1] == columns
        expected = network(x).detach().numpy()
        assert OnnxRuntime(tmp_path / "f.onnx", 1).run(x.numpy()) == pytest.approx(
            expected, abs=1e-5
        )
    assert network[4].weight.shape == (4, 288)


def test_a_repeated_pixel_that_others_read_too_stays_repeated(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.linear = nn.AdaptiveAvgPool2d((2, 2)), nn.Linear(12, 4)

        def forward(self, x):
            flat = torch.flatten(self.pool(x), 1)
            return self.linear(flat) + flat[:, :4]

    network, x = Two().eval(), torch.randn(2, 3, 1, 1)
    export_onnx(network, (3, 1, 1), tmp_path / "f.onnx", {})
    expected = network(x).detach().numpy()
    assert OnnxRuntime(tmp_path / "f.onnx", 1).run(x.numpy()) == pytest.approx(expected, abs=1e-5)
