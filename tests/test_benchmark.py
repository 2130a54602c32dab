import time

import numpy as np
import pytest

from secateur.benchmark import latencies

IMAGE = np.zeros((1, 1, 4, 4), np.float32)


class Sleeper:
    name, version = "sleeper", "1"

    def __init__(self, log, letter, seconds=0.0):
        self.log, self.letter, self.seconds = log, letter, seconds

    def run(self, images):
        self.log.append(self.letter)
        time.sleep(self.seconds)
        return images


def test_variants_take_turns_and_warm_up_is_left_out():
    log = []
    samples = latencies({k: Sleeper(log, k) for k in "ABC"}, IMAGE, warmup=5, repeats=3)
    assert "".join(log) == "ABC" * 8
    assert {name: times.shape for name, times in samples.items()} == dict.fromkeys("ABC", (3,))


def test_samples_are_milliseconds():
    samples = latencies({"slow": Sleeper([], "s", 0.01)}, IMAGE, warmup=0, repeats=3)["slow"]
    assert (samples >= 10).all()
    assert samples.min() < 1000


@pytest.mark.parametrize(
    ("image", "warmup", "repeats"),
    [(np.zeros((2, 1, 4, 4), np.float32), 0, 1), (IMAGE, -1, 1), (IMAGE, 0, 0)],
)
def test_nonsense_is_refused(image, warmup, repeats):
    with pytest.raises(ValueError, match="need"):
        latencies({"a": Sleeper([], "a")}, image, warmup, repeats)
