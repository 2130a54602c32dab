import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from helpers.onnx_files import graph
from secateur.benchmarking.timing import (
    REST,
    SETTLE,
    SETTLE_BATCH,
    cold_start,
    latencies,
    memory_mb,
)

IMAGE = np.zeros((1, 1, 4, 4), np.float32)


class Sleeper:
    name, version = "sleeper", "1"

    def __init__(self, log, letter, seconds=0.0):
        self.log, self.letter, self.seconds = log, letter, seconds

    def run(self, images):
        self.log.append(self.letter)
        time.sleep(self.seconds)
        return images


def test_candidates_take_turns_and_warm_up_is_not_counted():
    log = []
    samples = latencies({k: Sleeper(log, k) for k in "ABC"}, IMAGE, warmup=5, repeats=3)
    assert "".join(log) == "".join(k * (SETTLE + 1) for k in "ABC") * 8
    assert {name: times.shape for name, times in samples.items()} == dict.fromkeys("ABC", (3,))


def test_samples_are_milliseconds():
    samples = latencies({"slow": Sleeper([], "s", 0.01)}, IMAGE, warmup=0, repeats=3)["slow"]
    assert (samples >= 10).all()
    assert samples.min() < 1000


def test_a_larger_batch_settles_with_fewer_runs():
    log = []
    latencies({"a": Sleeper(log, "a")}, np.zeros((4, 1, 4, 4), np.float32), 0, repeats=2)
    assert len(log) == 2 * (SETTLE_BATCH + 1)


def test_a_turn_rests_first_and_only_its_last_run_counts(monkeypatch):
    log = []
    monkeypatch.setattr("secateur.benchmarking.timing.time.sleep", lambda s: log.append(s))
    monkeypatch.setattr("secateur.benchmarking.timing.time.perf_counter_ns", _Counter(log))
    latencies({"a": Logger(log)}, IMAGE, warmup=0, repeats=1)
    assert log == [REST] + ["run"] * SETTLE + ["clock", "run", "clock"]


class Logger:
    name, version = "logger", "1"

    def __init__(self, log):
        self.log = log

    def run(self, images):
        self.log.append("run")
        return images


class _Counter:
    def __init__(self, log):
        self.log = log

    def __call__(self):
        self.log.append("clock")
        return 0


def test_cold_start_is_that_of_a_new_process_without_its_imports():
    found = cold_start(Heavy(), IMAGE, runs=2)
    assert found.open_ms >= 50
    assert 20 <= found.first_ms < 1000
    # The import allocates more than twice as much, and is not counted.
    assert 60e6 <= found.peak_bytes <= 110e6


class Heavy:
    """Takes 50 ms and 64 MB to open; its libraries take 160 MB."""

    def prepare(self):
        bytearray(160_000_000)

    def open(self):
        time.sleep(0.05)
        return HeavyRuntime()


class HeavyRuntime:
    name, version = "heavy", "1"

    def __init__(self):
        self.weights = np.ones(64_000_000, np.uint8)

    def run(self, images):
        time.sleep(0.02)
        return images


def test_memory_is_that_of_the_weights_and_needs_no_torch(tmp_path):
    files = {}
    for name, width in (("small", 4), ("large", 1_000_000)):
        nodes = [
            onnx.helper.make_node("Flatten", ["image"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ]
        files[name] = graph(
            nodes, tmp_path / f"{name}.onnx", inputs={"image": (1, 1, 4, 4)},
            outputs={"logits": (1, width)}, constants={"w": np.ones((16, width), np.float32)},
        )  # fmt: skip
    peaks = memory_mb(files, IMAGE, 1, "onnxruntime")
    assert 64 < peaks["large"] < 300  # 64 MB of weights, read from a file of as many
    assert peaks["small"] < 30
    code = "import sys, secateur.benchmarking.timing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("image", "warmup", "repeats"),
    [(np.zeros((1, 4, 4), np.float32), 0, 1), (IMAGE, -1, 1), (IMAGE, 0, 0)],
)
def test_nonsense_is_refused(image, warmup, repeats):
    with pytest.raises(ValueError, match="need"):
        latencies({"a": Sleeper([], "a")}, image, warmup, repeats)
