"""Memory and time of packed files: at most twice what the header promises, linear in tensors."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers.artifacts import packed, quantized
from secateur.artifact.bounds import check_network
from secateur.artifact.classifier import Classifier
from secateur.artifact.packing import pack, unpack
from secateur.errors import ArtifactError

MEASURE = """
import sys
from pathlib import Path
from secateur.artifact.packing import unpack

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(l for l in status.splitlines() if l.startswith("VmHWM")).split()[1])

unpack(Path(sys.argv[1]).read_bytes())
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = peak()
data = Path(sys.argv[2]).read_bytes()
size = len(unpack(data).onnx)
grown = peak() - before
print(size, grown, grown - 2 * size - len(data))
"""
CONSTANT = 50 * 2**20


def model(*tensors: np.ndarray) -> bytes:
    made = [numpy_helper.from_array(values, f"t{i}") for i, values in enumerate(tensors)]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], made)).SerializeToString()


def few(size: int) -> np.ndarray:
    """Zeros, and among them a few integers far apart, which are coded by their distances."""
    values = np.zeros(size, np.int8)
    values[[5, size // 3, size - 1]] = 7, -128, 127
    return values


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1000, 20_000), np.int8),
        np.zeros(5_000_000, np.float32),
        few(20_000_000),
        np.random.default_rng(0).integers(-3, 4, (1000, 4000)).astype(np.int8),
    ],
    ids=["zeros", "float zeros", "sparse", "dense"],
)
def test_memory_is_at_most_twice_what_the_header_promises(
    values: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "small.sec").write_bytes(packed("micro"))
    (tmp_path / "large.sec").write_bytes(pack(model(values), {}))
    command = [sys.executable, "-c", MEASURE, "small.sec", "large.sec"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    size, grown, beyond = map(int, done.stdout.split())
    assert size == len(model(values)) <= grown
    assert beyond < CONSTANT, f"{grown:,} bytes for {size:,}"


@pytest.mark.parametrize("shape", [(), (1,)])
def test_time_is_linear_in_the_number_of_tensors(shape: tuple[int, ...]) -> None:
    rng, seconds = np.random.default_rng(0), {}
    for count in (500, 2000):
        data = model(*rng.standard_normal((count, *shape)).astype(np.float32))
        start = time.process_time()
        assert unpack(pack(data, {})).onnx == data
        seconds[count] = time.process_time() - start
    assert seconds[2000] < 8 * seconds[500]


def test_long_gaps_are_read_as_they_were_written() -> None:
    """Distances beyond 16 bits have high bits, which come after the low bits of all parts."""
    values = few(600_000)
    values[:300_000:3] = 1
    data = model(values, np.arange(600_000, dtype=np.int32) * 1000)
    assert unpack(pack(data, {})).onnx == data


def test_what_a_file_says_of_itself_is_bounded() -> None:
    with pytest.raises(ArtifactError, match=r"larger than allowed.*at most 1,048,576"):
        pack(quantized("micro"), {"text": "x" * 2**20})
    with pytest.raises(ArtifactError, match=r"larger than allowed.*--limit"):
        pack(quantized("micro"), {}, limit=100)


def with_nan(values: np.ndarray) -> bytes:
    made = onnx.load_from_string(quantized("micro"))
    tensor = next(t for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    shape = numpy_helper.to_array(tensor).shape
    tensor.CopyFrom(numpy_helper.from_array(np.full(shape, values, np.float32), tensor.name))
    return made.SerializeToString()


def test_a_network_that_holds_nan_is_refused() -> None:
    data = unpack(pack(with_nan(np.float32("nan")), {})).onnx  # it is packed as it is
    with pytest.raises(ArtifactError, match="a tensor that holds NaN"):
        check_network(data)


def test_a_network_that_answers_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Classifier(quantized("micro"), {}, 1)
    monkeypatch.setattr(network._runtime, "run", lambda x: np.full((len(x), 10), np.nan))
    with pytest.raises(ArtifactError, match="answers with NaN"):
        network(np.zeros((1, 3, 12, 12), np.uint8))


def test_classifying_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "net.sec").write_bytes(packed("micro"))
    code = (
        "import sys, numpy, secateur; network = secateur.load('net.sec', threads=1);"
        "network.predict(numpy.zeros((1, 3, 12, 12), numpy.uint8));"
        "sys.exit(bool({'torch', 'torchvision', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
