"""``secateur.quantize``: any network in, an int8 file that is checked out."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

import secateur
from helpers.onnx_files import Attention, ChannelsLast, Gated, exported
from helpers.tiny_networks import images
from secateur.data import Images
from secateur.errors import DataError, RecipeError, SecateurError
from secateur.profiling import optimized_graph
from secateur.runtimes import OnnxRuntime

SHAPE = (3, 16, 16)
NAMES = ["a", "b", "c", "d", "e"]


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize("make", [Attention, Gated, ChannelsLast])
def test_a_module_and_its_file_are_quantized_alike(make, tmp_path):
    network = seeded(make)
    x = images(SHAPE, 32, seed=2)
    path = exported(network, SHAPE, tmp_path / "n.onnx", dynamo=False, opset=17)
    for source in (network, path):
        small = secateur.quantize(source, x, method="minmax")
        assert small.parity.images == 32
        assert small.parity.signal_to_noise_db > 20
        saved = small.save(tmp_path / "q.onnx")
        with torch.inference_mode():
            expected = network(x).numpy()
        logits = OnnxRuntime(saved, 1).run(x.numpy())
        error = logits - expected
        noise = 10 * np.log10(np.square(expected - expected.mean(0)).sum() / np.square(error).sum())
        assert noise > 15


def kinds(path):
    return [node.op_type for node in optimized_graph(path).graph.node]


def test_layers_run_on_integers_and_the_rest_of_a_transformer_on_floats(tmp_path):
    small = secateur.quantize(seeded(Attention), images(SHAPE, 16), method="minmax")
    ran = kinds(small.save(tmp_path / "q.onnx"))
    assert ran.count("QGemm") == 5
    assert ran.count("QLinearConv") == 1
    assert "QLinearAdd" not in ran  # the residual stream is not rounded
    assert not {"Gemm", "Conv", "FusedConv"} & set(ran)


def test_convolutions_before_a_float_activation_run_on_integers(tmp_path):
    small = secateur.quantize(seeded(Gated), images(SHAPE, 16), method="minmax")
    ran = kinds(small.save(tmp_path / "q.onnx"))
    assert ran.count("QLinearConv") == 5
    assert not {"Conv", "FusedConv"} & set(ran)
    assert "QLinearMul" in ran  # the gate of squeeze and excite


@pytest.mark.parametrize("make", [Attention, ChannelsLast])
def test_transformers_are_simulated_so_that_biases_are_corrected(make):
    small = secateur.quantize(seeded(make), images(SHAPE, 16), method="minmax")
    assert set(small.chosen["recovery"]) == {"nearest", "nearest, biases corrected"}


def test_a_transformer_is_packed_and_classifies(tmp_path):
    pixels = (images(SHAPE, 16) * 40 + 128).clamp(0, 255).to(torch.uint8)
    network = seeded(Attention)
    small = secateur.quantize(network, pixels, classes=NAMES, mean=[0.5] * 3, std=[0.25] * 3)
    saved = small.save(tmp_path / "q.onnx")
    secateur.pack(saved, tmp_path / "q.sec")
    shares = secateur.load(tmp_path / "q.sec")(pixels.numpy())
    prepared = (pixels.float() / 255 - 0.5) / 0.25
    expected = torch.from_numpy(OnnxRuntime(saved, 1).run(prepared.numpy())).softmax(1).numpy()
    assert np.allclose(shares, expected, atol=1e-3)


def test_choices_are_made_against_the_float_network_without_labels():
    small = secateur.quantize(seeded(Gated), images(SHAPE, 24))
    assert set(small.chosen["method_loss"]) == {"minmax", "percentile", "mse", "entropy"}
    assert small.parity.correct is None
    assert len(small.chosen["recovery"]) == 2


def test_labels_are_counted_and_classes_and_preparation_stored(tmp_path):
    x = (images(SHAPE, 20) * 40 + 128).clamp(0, 255).to(torch.uint8)
    labels = torch.arange(20) % 5
    small = secateur.quantize(
        seeded(Gated), x, classes=NAMES, mean=[0.5] * 3, std=[0.25] * 3, labels=labels
    )
    about = metadata(small.model)
    assert json.loads(about["classes"]) == NAMES
    assert json.loads(about["mean"]) == [0.5] * 3
    assert about["resolution"] == "16"
    prepared = (x.float() / 255 - 0.5) / 0.25
    logits = OnnxRuntime(small.save(tmp_path / "q.onnx"), 1).run(prepared.numpy())
    assert small.parity.correct == int((logits.argmax(1) == labels.numpy()).sum())


def test_images_bring_labels_and_classes_and_validation_is_used_instead():
    pixels = (images(SHAPE, 20) * 40 + 128).clamp(0, 255).to(torch.uint8)
    data = Images(pixels, torch.arange(20) % 5, tuple(NAMES))
    network = seeded(Gated)
    small = secateur.quantize(
        network, data, mean=[0.5] * 3, std=[0.25] * 3, validation=data.take(torch.arange(10))
    )
    assert small.parity.images == 10
    assert json.loads(metadata(small.model)["classes"]) == NAMES


def test_metadata_of_a_file_is_kept(tmp_path):
    path = exported(seeded(Gated), SHAPE, tmp_path / "n.onnx", dynamo=False, opset=17)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"classes": json.dumps(NAMES), "author": "me"})
    onnx.save(model, path)
    small = secateur.quantize(path, images(SHAPE, 8), method="minmax")
    assert metadata(small.model)["author"] == "me"
    assert json.loads(metadata(small.model)["classes"]) == NAMES


def test_options_of_recipes_are_options_here():
    network, x = seeded(Gated), images(SHAPE, 16, seed=2)
    four = secateur.quantize(network, x, bits=4, method="minmax", rounding="adaptive")
    eight = secateur.quantize(network, x, method="minmax")
    mixed = secateur.quantize(network, x, bits="mixed", size=0.7, method="minmax")
    assert four.parity.signal_to_noise_db < eight.parity.signal_to_noise_db
    assert min(mixed.chosen["bits"].values()) < 8


def test_mistakes_are_one_line(tmp_path):
    network, x = seeded(Gated), images(SHAPE, 8)
    with pytest.raises(RecipeError, match="bits"):
        secateur.quantize(network, x, bits=9)
    with pytest.raises(RecipeError, match="the options are images, method"):
        secateur.quantize(network, x, wide=True)
    with pytest.raises(RecipeError, match="does not train"):
        secateur.quantize(network, x, epochs=1)
    with pytest.raises(DataError, match="uint8 without mean and std"):
        secateur.quantize(network, x.to(torch.uint8))
    with pytest.raises(DataError, match="found float64"):
        secateur.quantize(network, x.double())
    with pytest.raises(DataError, match=r"expected shape \(8,\), found shape \(3,\)"):
        secateur.quantize(network, x, labels=[0, 1, 2])
    with pytest.raises(DataError, match="expected 0 to 4, found 0 to 7"):
        secateur.quantize(network, x, labels=list(range(8)))
    with pytest.raises(DataError, match="5 names, one for each output, found 2 names"):
        secateur.quantize(network, x, classes=["a", "b"])
    with pytest.raises(SecateurError, match=r"missing\.onnx"):
        secateur.quantize(tmp_path / "missing.onnx", x)
