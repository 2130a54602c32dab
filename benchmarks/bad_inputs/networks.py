"""Bad packed files and ONNX files."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.bad_inputs.case import ACCEPTED, EITHER, TRIAL, Case
from benchmarks.bad_inputs.images import png
from helpers.artifacts import packed, quantized
from helpers.fuzz import mutated
from helpers.onnx_files import graph
from secateur.artifact.container import MAGIC, Section, read_sections, write_sections
from secateur.artifact.packing import TAGS, _squeezed, pack

PACKED, ONNX = "Packed files", "ONNX files"


def _with_sections(**changed: Section) -> bytes:
    return write_sections(read_sections(packed("micro"), TAGS) | changed)


def _with_metadata(**changed: str) -> bytes:
    model = onnx.load_from_string(quantized("micro"))
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, known | changed)
    return pack(model.SerializeToString(), {})


def _with_nan() -> bytes:
    model = onnx.load_from_string(quantized("micro"))
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    values = np.full_like(numpy_helper.to_array(tensor), np.nan)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return pack(model.SerializeToString(), {})


def _tensors(*tensors: np.ndarray) -> bytes:
    made = [numpy_helper.from_array(values, f"t{i}") for i, values in enumerate(tensors)]
    return helper.make_model(helper.make_graph([], "g", [], [], made)).SerializeToString()


@cache
def _zeros() -> bytes:
    """A packed file of a few kB with 100 MB of zeros."""
    return pack(_tensors(np.zeros((1000, 100_000), np.int8)), {})


def packed_files() -> Iterator[Case]:
    """``.sec`` files."""
    good, flipped = packed("micro"), bytearray(packed("micro"))
    flipped[len(flipped) // 2] ^= 1
    deep = b"[" * 100_000 + b"]" * 100_000
    bomb = replace(_squeezed(bytes(100_000_000)), size=1000)
    for name, data, message in (
        ("cut in the middle", good[: len(good) // 2], "not whole"),
        ("one bit flipped", bytes(flipped), "another checksum"),
        ("empty", b"", "not a Secateur file"),
        ("a zip file", b"PK\x03\x04" + bytes(100), "not a Secateur file"),
        ("of a newer version", MAGIC + b"\x63" + good[len(MAGIC) + 1 :], "newer Secateur"),
        ("100 MB of zeros, as many in the header", _zeros(), ""),
        ("100 MB of zeros, 1,000 bytes in the header", _with_sections(REST=bomb), "damaged|larger"),
        ("JSON 100,000 levels deep", _with_sections(ABOU=_squeezed(deep)), "damaged section"),
        ("an integer of 5,000 digits", _with_sections(ABOU=_squeezed(b"9" * 5000)), "damaged"),
        ("a network of another hash", _with_sections(ABOU=_squeezed(b"{}")), "another"),
    ):  # fmt: skip
        yield Case(PACKED, name, ("verify", "net.sec"), {"net.sec": data}, message)
    for name, make, message in (
        ("a FIFO", os.mkfifo, "a FIFO"),
        ("a folder", Path.mkdir, "a folder"),
        ("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"), "a device"),
    ):
        yield Case(PACKED, name, ("verify", "net.sec"), {"net.sec": make}, message)
    predict = ("predict", "net.sec", "x.png")
    control, surrogate = "\x1b[31mred\x07\x9b\n", "\ud800"
    others = [f"class {number}" for number in range(9)]
    for name, data, message, ends in (
        ("a tensor that holds NaN", _with_nan(), "NaN", ""),
        ("class names with control characters", [control, *others], r"x1b\[31mred", ACCEPTED),
        ("a class name with a lone surrogate", [surrogate, *others], "ud800", ACCEPTED),
        ("one class name for ten outputs", ["one"], "metadata|classes", ""),
    ):
        file = data if isinstance(data, bytes) else _with_metadata(classes=json.dumps(data))
        case = Case(
            PACKED, name, (*predict, "--top", "10"), {"net.sec": file, "x.png": png()}, message
        )
        yield replace(case, ends=ends) if ends else case


def _constant_of_shape(*sides: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    node = helper.make_node("ConstantOfShape", ["sides"], ["logits"])
    return [node], {"sides": np.array(sides, np.int64)}


def _endless() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    nodes, constants = _constant_of_shape(20_000, 1500)
    nodes[0].output[0] = "x0"
    nodes += [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(400)]
    nodes.append(helper.make_node("ReduceMean", ["x400"], ["logits"]))
    return nodes, constants | {"w": np.ones((1500, 1500), np.float32)}


def _external(location: str) -> bytes:
    model = onnx.load_from_string(quantized("micro"))
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    return model.SerializeToString()


def _valid_external(path: Path) -> None:
    model = onnx.load_from_string(quantized("micro"))
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, location="w.bin")


def onnx_files() -> Iterator[Case]:
    """``.onnx`` files, for every command that reads them."""
    good = quantized("micro")
    commands = (
        ("show", "net.onnx"), ("explain", "net.onnx"), ("pack", "net.onnx", "-o", "net.sec"),
        ("bench", "net.onnx"), ("quantize", "net.onnx", "--data", "x"), ("compress", "net.onnx"),
    )  # fmt: skip
    for command in commands:
        cut = good[: len(good) // 2]
        yield Case(ONNX, "cut in the middle", command, {"net.onnx": cut}, "ONNX")
        yield Case(ONNX, "a FIFO", command, {"net.onnx": os.mkfifo}, "FIFO|nothing to show|no such")
    rng = random.Random(0)  # noqa: S311
    for number in range(6):
        data = mutated(good, rng)
        command = (*commands[number % 2], *(("--repeats", "1") if number % 2 else ()))
        yield Case(ONNX, f"mutant {number}", command, {"net.onnx": data}, ends=EITHER)
    yield from _graphs()
    yield from _external_files()
    many = _tensors(*np.random.default_rng(0).standard_normal((16_384, 1)).astype(np.float32))
    pack_it = ("pack", "net.onnx", "-o", "net.sec")
    name = "16,384 tensors of one element"
    yield Case(ONNX, name, pack_it, {"net.onnx": many}, "times smaller", ACCEPTED)
    large = {"net.onnx": lambda path: (path.touch(), os.truncate(path, 2**32))}
    yield Case(ONNX, "4 GiB", ("show", "net.onnx"), large, "larger than allowed")


def _graphs() -> Iterator[Case]:
    inner = helper.make_graph([], "b", [], [])
    loop = helper.make_node("Loop", ["", "", "image"], ["logits"], body=inner)
    custom = helper.make_node("Mine", ["image"], ["logits"], domain="org.example")
    relus = [
        helper.make_node("Relu", [f"x{i}" if i else "image"], [f"x{i + 1}"]) for i in range(70_000)
    ]
    for name, (nodes, constants), message in (
        ("a loop", ([loop], {}), "Loop"),
        ("an operator of another domain", ([custom], {}), "org.example"),
        ("a tensor of 128 GiB", _constant_of_shape(2**35), "memory|alloc|exit code|signal"),
        ("an hour of multiplications", _endless(), "too much memory or time"),
        ("70,000 nodes", (relus, {}), "65,536"),
    ):

        def make(path: Path, nodes: list = nodes, constants: dict = constants) -> None:
            graph(nodes, path, constants=constants, domains=("org.example",))

        yield Case(
            ONNX, name, ("explain", "net.onnx"), {"net.onnx": make}, message, mebibytes=TRIAL
        )


def _external_files() -> Iterator[Case]:
    for name, data, more in (
        ("external data in the folder above", _external("../secret"), {}),
        ("external data at an absolute path", _external("/etc/passwd"), {}),
        ("external data that is missing", _external("w.bin"), {}),
        ("external data that is a FIFO", _external("w.bin"), {"w.bin": os.mkfifo}),
        ("external data that is a link outside", _external("w.bin"),
         {"w.bin": lambda path: path.symlink_to("/etc/passwd")}),
    ):  # fmt: skip
        for command in (("pack", "net.onnx", "-o", "net.sec"), ("explain", "net.onnx")):
            yield Case(ONNX, name, command, {"net.onnx": data, **more}, "external|outside|FIFO")
    valid = {"net.onnx": _valid_external}
    command = ("pack", "net.onnx", "-o", "net.sec")
    yield Case(ONNX, "external data that is valid", command, valid, "times smaller", ACCEPTED)
