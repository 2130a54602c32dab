"""Mutated image files give a clean error or an image, whatever is wrong with them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fuzz import mutated
from helpers.image_files import outcome, seeds

SEEDS = seeds()
REFUSED = {"float.tif", "frames.png", "frames.webp", "another.gif", "another.avif"}


@pytest.mark.parametrize("name", SEEDS)
def test_every_seed_is_read_or_refused_as_it_should(name: str) -> None:
    assert (outcome(SEEDS[name]) == "an image") == (name not in REFUSED)


@given(name=st.sampled_from(list(SEEDS)), rng=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
def test_a_mutated_file_is_an_image_or_a_clean_error(name: str, rng: random.Random) -> None:
    result = outcome(mutated(SEEDS[name], rng))  # raises where anything else happens
    assert result == "an image" or result.startswith("error: ")


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_bytes_that_are_no_file_are_refused(data: bytes) -> None:
    assert outcome(data).startswith("error: cannot read image")
