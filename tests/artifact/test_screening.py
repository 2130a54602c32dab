"""A stranger's ONNX file is read and run in a process that is killed at its limits."""

import os

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from helpers.artifacts import quantized
from secateur.artifact.screening import check_operators, screen
from secateur.errors import ArtifactError


def write(path, *nodes, constants=None, opsets=(("", 18),), shape=(1, 3, 8, 8)):
    ends = [
        helper.make_tensor_value_info("image", 1, shape),
        helper.make_tensor_value_info("y", 1, None),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid(*pair) for pair in opsets]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def test_a_good_file_passes(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(quantized("micro"))
    before = path.read_bytes()
    screen(path, run=True)
    assert path.read_bytes() == before


def test_what_takes_too_much_memory_ends_alone(tmp_path):
    side = np.array([2**35], np.int64)
    node = helper.make_node("ConstantOfShape", ["side"], ["y"])
    with pytest.raises(ArtifactError, match=r"(?i)memory|alloc|exit code|signal"):
        screen(write(tmp_path / "net.onnx", node, constants={"side": side}), run=True)


def test_what_takes_too_long_is_killed(tmp_path):
    constants = {"w": np.ones((1500, 1500), np.float32), "side": np.array([20_000, 1500])}
    nodes = [
        helper.make_node("ConstantOfShape", ["side"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(200)),
        helper.make_node("ReduceMean", ["x200"], ["y"]),
    ]
    path = write(tmp_path / "net.onnx", *nodes, constants=constants)
    with pytest.raises(ArtifactError, match=r"too much memory or time.*(signal|no end)"):
        screen(path, run=True, seconds=4)


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "net.onnx")
    with pytest.raises(ArtifactError, match="a FIFO"):
        screen(tmp_path / "net.onnx")


def test_operators_from_elsewhere_and_inner_graphs_are_not_run(tmp_path):
    custom = helper.make_node("Mine", ["image"], ["y"], domain="org.example")
    branch = helper.make_graph([], "b", [], [])
    loop = helper.make_node("Loop", ["", "", "image"], ["y"], body=branch, name="around")
    for node, named in ((custom, "org.example::Mine"), (loop, "Loop 'around'")):
        path = write(tmp_path / "net.onnx", node, opsets=(("", 18), ("org.example", 1)))
        with pytest.raises(ArtifactError, match=f"a network that is not run.*{named}"):
            check_operators(onnx.load(path), path)
