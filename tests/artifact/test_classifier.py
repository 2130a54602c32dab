import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import secateur
from helpers.artifacts import CLASSES, packed, quantized
from secateur.artifact.bounds import check_network
from secateur.artifact.classifier import Classifier
from secateur.artifact.packing import pack
from secateur.artifact.verify import verify
from secateur.cli.files import pack_into, predictions, unpack_into, verified
from secateur.data import Preparation, load, load_folder
from secateur.errors import ArtifactError, DataError, SecateurError


@pytest.fixture
def file(tmp_path):
    (tmp_path / "net.sec").write_bytes(packed("mobilenet"))
    return tmp_path / "net.sec"


def pixels(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_it_answers_as_the_file_that_was_packed(file):
    network = secateur.load(file)
    images = pixels(70, 3, 28, 28)
    prepare = Preparation((0.5,) * 3, (0.25,) * 3, 28)
    prepared = prepare(torch.from_numpy(images)).contiguous().numpy()
    session = onnxruntime.InferenceSession(quantized("mobilenet"))
    logits = torch.from_numpy(session.run(None, {"image": prepared})[0])
    assert network(images) == pytest.approx(logits.softmax(1).numpy(), abs=1e-6)
    assert network.classes == CLASSES
    assert network.about["made"] == "for a test"
    assert network.onnx == quantized("mobilenet")
    for image, found in zip(network(images), network.predict(images, top=2), strict=True):
        assert found[0] == (CLASSES[image.argmax()], pytest.approx(image.max()))
        assert len(found) == 2


def test_no_more_images_at_once_than_the_bounds_allow(file, monkeypatch):
    module = "secateur.artifact.classifier.check_network"
    monkeypatch.setattr(module, lambda data: (check_network(data)[0], 3))
    network, images = secateur.load(file), pixels(7, 3, 28, 28)
    run, sizes = network._runtime.run, []
    monkeypatch.setattr(network._runtime, "run", lambda x: sizes.append(len(x)) or run(x))
    assert network(images) == pytest.approx(secateur.load(file)(images), abs=1e-6)
    assert sizes == [3, 3, 1]


def test_channels_may_stand_last_and_files_be_given(file, tmp_path):
    network, images = secateur.load(file), pixels(3, 28, 28, 3)
    scores = network(images)
    assert scores == pytest.approx(network(images.transpose(0, 3, 1, 2)), abs=1e-6)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    assert network(paths) == pytest.approx(scores, abs=1e-6)
    assert network([str(path) for path in paths]) == pytest.approx(scores, abs=1e-6)
    assert network([]).shape == (0, 10)


def test_images_of_another_size_are_cropped_and_resized(file, tmp_path):
    network, wide = secateur.load(file), pixels(2, 60, 90, 3)
    square = np.ascontiguousarray(wide[:, :, 15:75])
    assert network(wide).argmax(1).tolist() == network(square).argmax(1).tolist()
    Image.fromarray(wide[0]).convert("RGBA").save(tmp_path / "wide.png")
    assert network([tmp_path / "wide.png"])[0] == pytest.approx(network(wide)[0], abs=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((2, 28, 28, 4), np.uint8),
        np.zeros((2, 0, 28, 3), np.uint8),
        b"bytes",
        None,
    ],
)
def test_images_of_another_kind_are_refused(file, images):
    with pytest.raises(DataError, match=r"or arrays of shape \(H, W, 3\) or \(N, H, W, 3\), found"):
        secateur.load(file)(images)


def test_what_training_sees_of_a_file_is_what_the_network_is_given(file, tmp_path):
    """Evaluation, a folder of images, paths, arrays and tensors: the same tensor of one file."""
    network = secateur.load(file)
    for name in ("left", "right"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number, image in enumerate(pixels(2, 40, 60, 3)):
            Image.fromarray(image).save(tmp_path / "train" / name / f"{number}.png")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    test = load_folder(tmp_path, network.prepare).test
    evaluated = network.prepare(test.pixels[:]).contiguous().numpy()
    given = []
    network._runtime.run = lambda batch: given.append(batch) or np.zeros((len(batch), 10))
    paths = sorted(tmp_path.glob("test/*/*.png"))
    opened = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in opened])
    tensors = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    kinds = (paths, map(str, paths), opened, arrays, tensors, tensors / 255, arrays / 255)
    for images in kinds:
        network(images)
        assert given.pop() == pytest.approx(evaluated, abs=1e-6)
    network(paths[0])
    assert given.pop() == pytest.approx(evaluated[:1], abs=1e-6)


def test_what_is_no_image_is_named(file, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read image \(.*x\.png\)"):
        secateur.load(file)([tmp_path / "x.png"])


def with_metadata(**changes):
    model = onnx.load_from_string(quantized("mobilenet"))
    said = {entry.key: entry.value for entry in model.metadata_props} | changes
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in said.items() if v is not None})
    return model.SerializeToString()


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": None},
        {"mean": "no"},
        {"classes": json.dumps(["only one"])},
        {"mean": "[0.5]", "std": "[0.5]"},
        {"std": "[0, 0, 0]"},
        {"resolution": "29"},
        {"resolution": "many"},
    ],
)
def test_metadata_that_does_not_fit_is_refused(changes, tmp_path):
    (tmp_path / "net.sec").write_bytes(pack(with_metadata(**changes), {}))
    with pytest.raises(ArtifactError, match=r"net\.sec: a network (that does not say|whose meta)"):
        secateur.load(tmp_path / "net.sec")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "net.sec").write_bytes(packed("mobilenet")[:-1])
    with pytest.raises(ArtifactError, match=r"net\.sec: the file is not whole"):
        secateur.load(tmp_path / "net.sec")
    (tmp_path / "net.sec").write_bytes(packed("mobilenet"))
    size = (tmp_path / "net.sec").stat().st_size
    with pytest.raises(ArtifactError, match=r"net\.sec: larger than allowed"):
        secateur.load(tmp_path / "net.sec", limit=size)
    with pytest.raises(SecateurError, match=r"larger than allowed.*net\.sec"):
        secateur.load(tmp_path / "net.sec", limit=10)


# ---- verify: the accuracy that a file records


def gray_network(correct_by):
    """A packed network for the excerpt of FashionMNIST that ships, and its own record."""
    test = load("fashionmnist-mini", None, train=False)
    model = onnx.load_from_string(quantized("alexnet"))
    kernel = next(t for t in model.graph.initializer if tuple(t.dims)[1:] == (3, 11, 11))
    values = onnx.numpy_helper.to_array(kernel)[:, :1].copy()
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    said = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, said | {"mean": "[0.5]", "std": "[0.25]"})
    data = model.SerializeToString()
    network = Classifier(data, {}, 1)
    right = int((network(test.pixels.numpy()).argmax(1) == test.labels.numpy()).sum())
    about = {
        "data": {"name": "fashionmnist-mini", "test_sha256": test.fingerprint},
        "accuracy": {"correct": right + correct_by, "images": len(test)},
    }
    return data, about, right


@pytest.mark.parametrize("off", [0, 1, 50, -50])
def test_the_recorded_accuracy_is_checked(off, tmp_path):
    data, about, right = gray_network(off)
    path = tmp_path / "net.sec"
    path.write_bytes(pack(data, about))
    assert verify(path).measured is None
    if abs(off) < 2:
        found = verify(path, tmp_path)
        assert (found.recorded, found.measured) == ((right + off, len_of(about)), right)
        assert ("the same" if off == 0 else "round differently") in list(verified(path, tmp_path))[
            -1
        ]
    else:
        with pytest.raises(ArtifactError, match="not as accurate as the file says"):
            verify(path, tmp_path)


def len_of(about):
    return about["accuracy"]["images"]


def test_other_images_are_not_measured_on(tmp_path):
    data, about, _ = gray_network(0)
    about["data"]["test_sha256"] = "0" * 64
    (tmp_path / "net.sec").write_bytes(pack(data, about))
    with pytest.raises(ArtifactError, match="other test images"):
        verify(tmp_path / "net.sec", tmp_path)


def test_a_file_without_a_record_says_so(file, tmp_path):
    assert "no accuracy is recorded in it" in list(verified(file, None))
    with pytest.raises(ArtifactError, match="records no accuracy"):
        verify(file, tmp_path)


# ---- what the commands do


def test_packed_and_unpacked(tmp_path):
    (tmp_path / "a.onnx").write_bytes(quantized("shufflenet"))
    (line,) = pack_into(tmp_path / "a.onnx", tmp_path / "a.sec")
    assert "times smaller than its ONNX" in line
    (line,) = unpack_into(tmp_path / "a.sec", tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == quantized("shufflenet")
    assert "SHA-256" in line
    with pytest.raises(SecateurError, match="nothing to pack"):
        list(pack_into(tmp_path / "no", tmp_path / "c.sec"))


def test_predictions_name_classes(file, tmp_path):
    Image.fromarray(pixels(1, 28, 28, 3)[0]).save(tmp_path / "x.png")
    (line,) = predictions(file, [tmp_path / "x.png"], 2, 1)
    assert line.startswith(f"{tmp_path / 'x.png'}: class ")
    assert line.count("%") == 2


def test_a_whole_preparation_travels_with_the_file(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    prepare = secateur.Preparation((0.4,) * 3, (0.2,) * 3, 8, 11, "bicubic", order="BGR")
    path = secateur.export(
        network, tmp_path / "n.onnx", (3, 8, 8), classes=["a", "b"], preparation=prepare
    )
    packed = secateur.pack(path, tmp_path / "n.sec")
    assert secateur.load(packed).prepare == prepare
    image = Image.fromarray(pixels(1, 30, 50, 3)[0])
    tensor = prepare(torch.from_numpy(prepare.fit(image)[None]))
    expected = network(tensor).softmax(1).detach().numpy()
    assert secateur.load(packed)(image) == pytest.approx(expected, abs=1e-5)
    for shape, more in (((3, 9, 9), {}), ((1, 8, 8), {}), ((3, 8, 8), {"mean": [0.5] * 3})):
        with pytest.raises(DataError, match="a preparation that does not fit"):
            secateur.export(network, tmp_path / "m.onnx", shape, preparation=prepare, **more)
