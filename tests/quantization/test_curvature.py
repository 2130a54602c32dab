import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny_networks import NETWORKS, exported, images
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, read_model
from secateur.quantization.curvature import output_curvature
from secateur.quantization.scheme import weighted_nodes
from secateur.quantization.simulate import Simulated


def test_of_the_last_layer_it_is_that_of_the_softmax(tmp_path):
    """The Fisher information of logits is diag(p) - p p^T: for each class E[p (1 - p)]."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    export_onnx(network, (3, 2, 2), tmp_path / "f.onnx", {})
    x = torch.randn(4000, 3, 2, 2)
    with torch.no_grad():  # as a caller may have it
        (curvature,) = output_curvature(read_model(tmp_path / "f.onnx"), x).values()
    p = network(x).softmax(1)
    exact = (p * (1 - p)).mean(0).detach().numpy()
    # One factor scales the layer by what was measured; it is near 1 where errors are small.
    assert np.corrcoef(curvature, exact)[0, 1] > 0.95
    assert curvature.sum() == pytest.approx(exact.sum(), rel=0.3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_it_foretells_what_an_error_costs(name, tmp_path):
    shape = exported(name, tmp_path / "f.onnx")
    model, x = read_model(tmp_path / "f.onnx"), images(shape, 256, seed=2)
    curvature, network, unseen = output_curvature(model, x), Simulated(model), images(shape, 128, 5)
    ratios, generator = [], torch.Generator().manual_seed(0)
    with torch.no_grad():
        truth = network(unseen).log_softmax(1)
        for node in weighted_nodes(Graph(model)):
            weight = network.weights[node.name].data.clone()
            error = 0.02 * weight.abs().max() * torch.randn(weight.shape, generator=generator)
            values = network.start(unseen)
            for before in network.walk(values):
                if before.name == node.name:
                    moved = network.layer_output(node, values[node.input[0]], error)
                    break
            others = [axis for axis in range(moved.ndim) if axis != 1]
            foretold = float(moved.square().mean(others).numpy() @ curvature[node.name]) / 2
            network.weights[node.name].data = weight + error
            answer = network(unseen).log_softmax(1)
            network.weights[node.name].data = weight
            divergence = F.kl_div(answer, truth, reduction="batchmean", log_target=True)
            ratios.append(float(divergence) / foretold)
    assert 0.5 < np.median(ratios) < 2
    assert min(ratios) > 0.1
    assert max(ratios) < 10
