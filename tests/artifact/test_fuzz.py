"""A short run of tests/fuzz.py; results/artifact/fuzz.json is a long one."""

import pytest

from helpers.fuzz import KINDS, MEBIBYTES, fuzz


@pytest.mark.parametrize("kind", list(KINDS))
def test_mutated_files_give_an_error_or_a_network(kind):
    count = 40 if kind == "network" else 250
    found = fuzz(count, seed=1, kinds=(kind,), names=("micro",))
    assert sum(found["seen"].values()) == count
    assert found["grown_mebibytes"] < MEBIBYTES
    assert len(found["seen"]) > 1
