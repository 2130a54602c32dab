"""The coder of integers: what is written is read, at close to its entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.artifact.integers import LOWEST, Bank, _tiles, code_matrix
from secateur.artifact.stream import Reader, Writer
from secateur.artifact.tensors import DTYPES, Banks, can_code, code_tensor
from secateur.errors import ArtifactError

MOST = 2**30 - 1


def coded(matrices, most=MOST):
    writer, bank, gaps = Writer(), Bank(most), Bank(MOST)
    for matrix in matrices:
        assert (code_matrix(writer, bank, gaps, matrix, matrix.shape) == matrix).all()
    return writer.to_bytes()


def decoded(data, shapes, most=MOST):
    reader, bank, gaps = Reader(data), Bank(most), Bank(MOST)
    found = [code_matrix(reader, bank, gaps, None, shape) for shape in shapes]
    reader.finish()
    return found


MATRICES = hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    elements=st.one_of(st.just(0), st.integers(-4, 4), st.integers(-MOST, MOST)),
)


@given(st.lists(MATRICES, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(matrices):
    found = decoded(coded(matrices), [matrix.shape for matrix in matrices])
    assert all((a == b).all() for a, b in zip(found, matrices, strict=True))


def test_every_magnitude_at_the_edge_of_a_bucket():
    edges = np.array([v for low in LOWEST.tolist() for v in (low - 1, low, low + 1)])
    edges = edges[(edges >= 0) & (edges <= MOST)].astype(np.int32)
    matrix = np.concatenate([edges, -edges])[None]
    assert (decoded(coded([matrix]), [matrix.shape])[0] == matrix).all()


def entropy_bytes(matrix):
    counts = np.unique(matrix, return_counts=True)[1]
    return float(-(counts * np.log2(counts / matrix.size)).sum()) / 8


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 3.0, 20.0])
def test_integers_without_structure_take_their_entropy(scale):
    random = np.random.default_rng(0)
    matrix = np.rint(random.laplace(0, scale, (500, 400))).clip(-127, 127).astype(np.int32)
    assert len(coded([matrix], 256)) < 1.02 * entropy_bytes(matrix) + 300


def test_rows_and_columns_are_context():
    random = np.random.default_rng(0)
    spread = np.exp(random.normal(0, 1, (256, 1)) + random.normal(0, 1, (1, 256)))
    matrix = np.rint(random.laplace(0, spread)).clip(-127, 127).astype(np.int32)
    assert len(coded([matrix], 256)) < 0.9 * entropy_bytes(matrix)


def test_pruned_channels_are_nearly_free():
    random = np.random.default_rng(0)
    whole = np.rint(random.laplace(0, 2, (256, 256))).astype(np.int32)
    pruned = whole.copy()
    pruned[::2], pruned[:, 1::2] = 0, 0
    small = np.ascontiguousarray(pruned[1::2, ::2])
    assert len(coded([pruned])) < 1.25 * len(coded([small]))


def test_few_integers_among_zeros_are_coded_by_their_distances():
    random = np.random.default_rng(0)
    matrix = np.zeros((1000, 1000), np.int32)
    matrix.ravel()[random.choice(matrix.size, 500, replace=False)] = random.integers(1, 4, 500)
    ideal = 500 * (np.log2(1000 * 1000 / 500) + 1.44 + np.log2(3)) / 8
    assert len(coded([matrix])) < 1.1 * ideal + 200
    assert (decoded(coded([matrix]), [matrix.shape])[0] == matrix).all()


def test_the_second_matrix_profits_from_the_first():
    random = np.random.default_rng(0)
    matrices = [random.geometric(0.4, (20, 20)).astype(np.int32) for _ in range(2)]
    one = len(coded(matrices[:1]))
    assert len(coded(matrices)) < 2 * one - 20


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_tiles_cover_a_matrix_once(rows, columns):
    tiles = list(_tiles((rows, columns)))
    area = sum((r.stop - r.start) * (c.stop - c.start) for r, c in tiles)
    assert area == rows * columns
    assert len(tiles) == len({(r.start, c.start) for r, c in tiles})
    assert len(tiles) <= rows * columns // 8 + 1


@given(st.binary(max_size=200).map(lambda data: data[: len(data) // 4 * 4]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_integers_or_one_error(data):
    try:
        (found,) = decoded(data, [(13, 17)])
    except ArtifactError as error:
        assert "damaged stream" in str(error)  # noqa: PT017
    else:
        assert found.shape == (13, 17)


def test_bytes_that_are_left_over_are_an_error():
    data = coded([np.ones((4, 4), np.int32)])
    with pytest.raises(ArtifactError, match="after its end"):
        decoded(data + b"\0\0\0\1" * 3, [(4, 4)])
    with pytest.raises(ArtifactError, match="whole words"):
        Reader(b"abc")


# ---- tensors

TENSORS = st.one_of(
    *(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, max_side=6))
        for dtype in DTYPES.values()
    )
)


@given(st.lists(TENSORS, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_tensors_of_every_type_and_shape(tensors):
    tensors = [tensor for tensor in tensors if can_code(tensor)]
    writer, banks = Writer(), Banks()
    for tensor in tensors:
        code_tensor(writer, banks, tensor, tensor.dtype, tensor.shape)
    reader, banks = Reader(writer.to_bytes()), Banks()
    for tensor in tensors:
        found = code_tensor(reader, banks, None, tensor.dtype, tensor.shape)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.tobytes() == tensor.tobytes()


def test_what_cannot_be_coded_is_said_beforehand():
    assert can_code(np.array([-(2**30) + 1], np.int32))
    assert not can_code(np.array([2**30], np.int32))
    assert not can_code(np.array([-(2**31)], np.int32))
    assert not can_code(np.array([1.0, -1.0000001], np.float32))
    assert can_code(np.array([np.nan], np.float32))
    assert not can_code(np.zeros((0, 3), np.int8))
    assert all(can_code(np.array(np.iinfo(t).min, t)) for t in (np.int8, np.uint8))


def test_integers_that_do_not_fit_their_type_are_an_error():
    writer, bank = Writer(), Bank(256)
    code_matrix(writer, bank, Bank(MOST), np.full((1, 3), 200, np.int32), (1, 3))
    with pytest.raises(ArtifactError, match="integers in -128 to 127"):
        code_tensor(Reader(writer.to_bytes()), Banks(), None, np.dtype("i1"), (3,))
