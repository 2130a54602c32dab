"""Builds the nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from secateur.onnx_ir.model import IR_VERSION
from secateur.sensitivity.layout import Shape, tensor_name
from secateur.sensitivity.tape import Call, Unsupported, Value

OPSET = 20  # the first with Gelu


class Nodes:
    """Nodes and constants of a graph under construction.

    Args:
        batch: Batch size.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def model(self, inputs: list[tuple[str, Shape]], outputs: list[str]) -> onnx.ModelProto:
        """Return the model."""
        declared = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs]
        gives = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, "part", declared, gives, constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)

    def _in(self, call: Call, index: int = 0) -> str:
        value = call.args[index]
        if not isinstance(value, Value):
            raise Unsupported(f"aten::{call.op} of what is not computed from the images")
        return tensor_name(value)

    def _new(self) -> str:
        self._count += 1
        return f"between_{self._count}"

    def _node(
        self, op: str, inputs: list[str], output: Call | str | None = None, **attributes: Any
    ) -> str:
        name = output if isinstance(output, str) else self._new()
        if isinstance(output, Call):
            name = tensor_name(output.outputs[0])
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def _constant(self, value: npt.ArrayLike, name: str | None = None) -> str:
        name = name or self._new()
        self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def _reshape(self, name: str, shape: Sequence[int], output: Call | str | None = None) -> str:
        return self._node("Reshape", [name, self._constant(np.array(shape, np.int64))], output)

    def _apart(self, value: Value) -> str:
        """``value`` with separate dimensions: (a, b, ..., N)."""
        return self._reshape(tensor_name(value), (*value.shape[1:], self._batch))

    def _slice(self, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        bounds = [self._constant(np.array([n], np.int64)) for n in (start, stop, axis, step)]
        return self._node("Slice", [name, *bounds])
