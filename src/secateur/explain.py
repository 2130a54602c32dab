"""Where a file's time goes, node by node, and what of it can be saved.

The graph that runs is not the graph in the file: ONNX Runtime fuses operators, changes layouts, and
takes integer kernels where it has them. So the graph it makes of the file is read back, and each of
its nodes is timed while it runs.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.table import Table

from secateur import environment
from secateur.benchmark import latencies
from secateur.errors import SecateurError
from secateur.onnx_graph import Graph, attribute, read_model
from secateur.runtimes import Array, OnnxRuntime, session_options
from secateur.runtimes.onnx_runtime import is_saturation_free

WARMUP = 5
"""Runs that are not counted."""

CONVERTERS = ("QuantizeLinear", "DequantizeLinear")
MOVERS = (
    "Concat", "Flatten", "Gather", "Identity", "Pad", "QLinearConcat", "ReorderInput",
    "ReorderOutput", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
UNCOUNTED = {*CONVERTERS, *MOVERS} - {"Concat"}
"""What may be in float without being an island."""
INTEGER = re.compile(r"QLinear.*|QGemm|ConvInteger|MatMulInteger.*|DynamicQuantize.*")
"""Operators that compute in integers whatever they give."""
WEIGHTED = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")
ABLE = (
    *WEIGHTED, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu",
    "Resize",
)  # fmt: skip
"""Operators that are integer in a file of ours, if what is around them lets them."""
CONVOLUTION = re.compile(r"(Fused|Nhwc|NhwcFused|QLinear)?Conv")


@dataclass(frozen=True)
class Node:
    """A node of the graph that runs.

    Attributes:
        name: As in the optimized graph, which begins it with the name in the file.
        operator: What it does.
        element: What it computes in, ``int8`` or ``float``; with ``>`` what it reads and gives.
        reads: Shape of its first image or matrix. Integer layers keep channels last.
        gives: Shape of its first output.
        ms: Median milliseconds of a run.
        share: Of the time of all nodes, in [0, 1].
    """

    name: str
    operator: str
    element: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    ms: float
    share: float


@dataclass(frozen=True)
class Island:
    """A node that computes in float though the file is quantized, why, and what to do.

    ``ms`` is None where ONNX Runtime's profiler calls the node by a name that the graph lacks.
    """

    name: str
    operator: str
    ms: float | None
    why: str
    remedy: str


@dataclass(frozen=True)
class Width:
    """A convolution whose channels do not fill the blocks that its kernel works in.

    Attributes:
        name: The node's.
        ms: What all of the node takes, not what the last block wastes.
        end: Which channels: ``inputs``, ``outputs``, or ``channels`` of a depthwise convolution.
        channels: How many there are, in each group.
        block: How many a whole block has.
        why: What happens to those beyond the last whole block.
    """

    name: str
    ms: float
    end: str
    channels: int
    block: int
    why: str

    def __str__(self) -> str:
        """Say how many are too many, and where the nearest full blocks end."""
        whole = self.channels // self.block * self.block
        fits = f"prune to {whole} or widen to" if whole else "widen to"
        return (
            f"{self.channels} {self.end}, {self.channels - whole} beyond whole blocks of "
            f"{self.block}: {fits} {whole + self.block}; {self.why}"
        )


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; plain data.

    Attributes:
        file: Path of the file.
        size_bytes: On disk.
        precision: ``int8`` where the file holds quantizers, else ``float``.
        runtime: Name and version.
        processor: That this ran on.
        threads: Inside one operator.
        median_ms: Of a whole run, without the profiler.
        p10_ms: Its 10th percentile.
        p90_ms: Its 90th percentile.
        nodes: Of the graph that runs, longest first.
        islands: What is still in float in a quantized file, longest first.
        edges: Conversions at the file's inputs and outputs, which must be.
        conversions: Conversions inside the graph, which islands bring.
        widths: Convolutions that miss their kernel's block, longest first.
    """

    file: str
    size_bytes: int
    precision: str
    runtime: str
    processor: str
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    nodes: tuple[Node, ...]
    islands: tuple[Island, ...]
    edges: tuple[str, ...]
    conversions: tuple[str, ...]
    widths: tuple[Width, ...]

    def operators(self, among: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
        """Count, milliseconds and share of each operator, longest first; of those ``among``."""
        total: dict[str, dict[str, float]] = {}
        for node in self.nodes:
            if among is None or node.operator in among:
                sums = total.setdefault(node.operator, {"count": 0, "ms": 0.0, "share": 0.0})
                sums["count"] += 1
                sums["ms"] += node.ms
                sums["share"] += node.share
        return dict(sorted(total.items(), key=lambda item: -item[1]["ms"]))

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"operators": self.operators(), "moving": self.operators(MOVERS)}


def explain(path: Path, threads: int, repeats: int, size: int | None = None) -> Explanation:
    """Run a file under ONNX Runtime and say where its time goes.

    Args:
        path: An ONNX file with one float32 image as input.
        threads: Threads inside one operator.
        repeats: Runs to take the median of, with the profiler and as many without.
        size: Height and width of the image, where the file leaves them open.

    Raises:
        SecateurError: The file is not ONNX, ONNX Runtime cannot run it, or its input's shape is
            open and ``size`` is not given.
    """
    model = read_model(path)
    image = _image(model, size, path)
    runtime = OnnxRuntime(path, threads)
    try:
        events = _profile(path, session_options(threads, is_saturation_free(model)), image, repeats)
        optimized = optimized_graph(path)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise SecateurError("ONNX Runtime cannot run the file", where=path, found=error) from error
    samples = latencies({"file": runtime}, image, WARMUP, repeats)["file"]
    p10, median, p90 = (float(value) for value in np.percentile(samples, [10, 50, 90]))
    nodes = _nodes(events)
    edges, conversions = _conversions(optimized)
    return Explanation(
        file=str(path),
        size_bytes=path.stat().st_size,
        precision="int8" if _is_quantized(model) else "float",
        runtime=f"{runtime.name} {runtime.version}",
        processor=environment.processor(),
        threads=threads,
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        nodes=nodes,
        islands=tuple(_islands(optimized, nodes)),
        edges=edges,
        conversions=conversions,
        widths=tuple(_widths(model, optimized, nodes)),
    )


def _image(model: onnx.ModelProto, size: int | None, path: Path) -> Array:
    """Return one random image of the shape that the file reads."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    kind = inputs[0].type.tensor_type if len(inputs) == 1 else onnx.TypeProto.Tensor()
    shape = [dim.dim_value for dim in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4:
        raise SecateurError(
            "not an image classifier",
            where=path,
            expected="one float32 input of shape (N, C, H, W)",
            found=", ".join(f"{value.name} of {_said(value)}" for value in inputs) or "no input",
        )
    shape[0] = shape[0] or 1
    shape[2:] = [side or size or 0 for side in shape[2:]]
    if 0 in shape:
        raise SecateurError(
            "the file leaves its input's shape open",
            where=path,
            found=_said(inputs[0]),
            remedy="give the image's side with --size" if shape[1] else "export it with a shape",
        )
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _said(value: onnx.ValueInfoProto) -> str:
    sides = [str(d.dim_param or d.dim_value or "?") for d in value.type.tensor_type.shape.dim]
    return f"({', '.join(sides)})"


def _profile(
    path: Path, options: onnxruntime.SessionOptions, image: Array, repeats: int
) -> list[dict[str, Any]]:
    """Return the profiler's events of warm-up and ``repeats`` runs."""
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: image}
        for _ in range(WARMUP + repeats):
            session.run(None, feed)
        return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))


def optimized_graph(path: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime makes of a file on this processor.

    Raises:
        SecateurError: The file is not ONNX.
    """
    options = session_options(threads=1, saturation_free=is_saturation_free(read_model(path)))
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.load(f"{folder}/optimized.onnx")


def _nodes(events: list[dict[str, Any]]) -> tuple[Node, ...]:
    """Gather the events of each node, longest first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs.setdefault(event["args"]["node_index"], []).append(event)
    spent = {key: float(np.median([e["dur"] for e in of[WARMUP:]])) for key, of in runs.items()}
    total = sum(spent.values())
    nodes = [_node(runs[key][0], spent[key] / 1e3, spent[key] / total) for key in runs]
    return tuple(sorted(nodes, key=lambda node: -node.ms))


def _node(event: dict[str, Any], ms: float, share: float) -> Node:
    read = [next(iter(each.items())) for each in event["args"]["input_type_shape"] if each]
    given = [next(iter(each.items())) for each in event["args"]["output_type_shape"] if each]
    # Scales and zero points may stand before the activation, but have fewer dimensions.
    kind, reads = max(read, key=lambda each: len(each[1]), default=("float", []))
    kind_given, gives = given[0] if given else (kind, [])
    kinds = [_element(kind), _element(kind_given)]
    return Node(
        name=event["name"].removesuffix("_kernel_time"),
        operator=event["args"]["op_name"],
        element=">".join(dict.fromkeys(kinds)),
        reads=tuple(reads),
        gives=tuple(gives),
        ms=ms,
        share=share,
    )


def _element(kind: str) -> str:
    return "int8" if kind in ("uint8", "int8") else kind


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(
        node.op_type in CONVERTERS or INTEGER.fullmatch(node.op_type) for node in model.graph.node
    )


# Islands of float.


def float_islands(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that compute in float in a graph that is quantized.

    What converts data or only moves it is not counted.

    Args:
        model: As :func:`optimized_graph` returns it: in the file itself, all is float.
    """
    return [_name(node) for node in _in_float(model)]


def _in_float(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    if not _is_quantized(model):
        return []
    floats = _float_tensors(model)
    return [
        node
        for node in model.graph.node
        if node.op_type not in UNCOUNTED
        and not INTEGER.fullmatch(node.op_type)
        and any(name in floats for name in node.input)
    ]


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the activations that hold floats; constants are not among them."""
    floats = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    } - {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:  # in the order of data
        if _gives_float(node, floats):
            floats.update(node.output)
    return floats


def _gives_float(node: onnx.NodeProto, floats: set[str]) -> bool:
    if node.op_type == "QGemm":  # to integers only where it has their zero point
        return len(node.input) < 9 or not node.input[8]
    if node.op_type in ("DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
        return True
    if node.op_type in ("QuantizeLinear", "Shape") or INTEGER.fullmatch(node.op_type):
        return False
    return any(name in floats for name in node.input)


def _islands(optimized: onnx.ModelProto, nodes: tuple[Node, ...]) -> list[Island]:
    graph, spent = Graph(optimized), {node.name: node.ms for node in nodes}
    found = [
        Island(_name(node), node.op_type, spent.get(node.name), *_reason(graph, node))
        for node in _in_float(optimized)
    ]
    return sorted(found, key=lambda island: -(island.ms or 0.0))


def _reason(graph: Graph, node: onnx.NodeProto) -> tuple[str, str]:
    """Say why ``node`` is in float, and what to do about it."""
    clamp = _clamp(graph, node)
    if clamp in ("Clip", "Relu"):
        return (
            f"{clamp} was not absorbed: the quantizer behind it ends elsewhere than the clamp",
            "calibrate on images that reach the clamp, and quantize again",
        )
    replace = "replace it in the network, by ReLU for example, or accept its time"
    if clamp:
        return f"{clamp} right after it has no integer kernel here", replace
    if node.op_type not in ABLE:
        if any(name in graph.outputs for name in node.output):
            return "it makes the file's output", "apply it outside of the network"
        return f"{node.op_type} has no integer kernel here", replace
    tied = [f"{_name(other)} ({other.op_type})" for other in _tied(graph, node)]
    if tied:
        more = f" and {len(tied) - 2} more" if len(tied) > 2 else ""
        return (
            f"no quantizer parts it from {', '.join(tied[:2])}{more}",
            "it follows once those are replaced",
        )
    return "no integer kernel was chosen", "quantize the float file again, `secateur quantize`"


def _clamp(graph: Graph, node: onnx.NodeProto) -> str:
    """The activation that was fused into ``node`` or follows it at once; empty where none does."""
    if node.op_type.startswith("Fused"):
        fused = attribute(node, "activation", b"Relu")
        return fused.decode() if isinstance(fused, bytes) else str(fused)
    near = [node, *graph.consumers.get(node.output[0], [])] if node.op_type in WEIGHTED else [node]
    return next((other.op_type for other in near if other.op_type in ("Clip", "Relu")), "")


def _tied(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes without an integer kernel that no conversion parts from ``node``."""
    seen, ahead = {node.output[0]: node}, [node]
    while ahead:
        here = ahead.pop()
        near = [graph.producer[name] for name in here.input if name in graph.producer]
        near += [reader for name in here.output for reader in graph.consumers.get(name, [])]
        for other in near:
            ends = other.op_type in CONVERTERS or INTEGER.fullmatch(other.op_type)
            if not ends and other.output[0] not in seen:
                seen[other.output[0]] = other
                ahead.append(other)
    return [other for other in seen.values() if other.op_type not in {*ABLE, *MOVERS}]


def _name(node: onnx.NodeProto) -> str:
    """The node's name; what ONNX Runtime made of a function has none, but its result has."""
    return node.name or node.output[0]


def _conversions(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name what converts at the file's inputs and outputs, and what converts in between."""
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    edges: list[str] = []
    inside: list[str] = []
    for node in model.graph.node:
        if node.op_type in CONVERTERS:
            at_edge = node.input[0] in ends or node.output[0] in ends
            (edges if at_edge else inside).append(node.name)
    return tuple(edges), tuple(inside)


# Widths.


def _widths(
    model: onnx.ModelProto, optimized: onnx.ModelProto, nodes: tuple[Node, ...]
) -> Iterator[Width]:
    """Yield the convolutions that miss a block, longest first; on processors that are known."""
    if not _blocks_are_known(environment.processor()):
        return
    original, run = Graph(model), Graph(optimized)
    convolutions = {name: node for node in original.nodes for name in _aliases(original, node)}
    running = {node.name: node for node in run.nodes if CONVOLUTION.fullmatch(node.op_type)}
    for node in nodes:
        source, runs = convolutions.get(_stem(node.name)), running.get(node.name)
        weight = None if source is None else _weight(original, source)
        if source is None or runs is None or weight is None:
            continue
        groups = int(str(attribute(source, "group", 1)))
        outputs, inputs = weight.dims[0] // groups, weight.dims[1]
        for end, channels, block, why in _blocks(inputs, outputs, groups, runs, run):
            if channels % block:
                yield Width(node.name, node.ms, end, channels, block, why)


def _blocks_are_known(processor: str) -> bool:
    return "avx2" in processor


def _aliases(graph: Graph, node: onnx.NodeProto) -> Iterator[str]:
    """Names that a convolution may run under: its own, and its activation's once they are fused."""
    if node.op_type == "Conv":
        yield node.name
        yield from (reader.name for reader in graph.consumers.get(node.output[0], []))


def _stem(name: str) -> str:
    """The name in the file of a node that ONNX Runtime renamed."""
    return re.sub(r"^fused |_nchwc$|_token_\d+$", "", name)


def _weight(graph: Graph, conv: onnx.NodeProto) -> onnx.TensorProto | None:
    """The constant weight of a convolution, behind its dequantizer where it has one."""
    name = conv.input[1]
    if name in graph.producer:
        name = graph.producer[name].input[0]
    return graph.constants.get(name)


def _blocks(
    inputs: int, outputs: int, groups: int, node: onnx.NodeProto, graph: Graph
) -> Iterator[tuple[str, int, int, str]]:
    """Yield which channels ONNX Runtime's kernel takes by how many, and what the rest costs.

    From onnxruntime/core/mlas/lib (qdwconv_avx2.cpp, convsym.cpp, snchwc.cpp) and confirmed by
    timing widths from 48 to 128.
    """
    wide = "avx512f" in environment.processor()
    depthwise = groups > 1 and inputs == outputs == 1
    if node.op_type == "QLinearConv":
        yield from _integer_blocks(inputs, outputs, groups, _signed(node, graph), wide)
        return
    block = 16 if wide else 8
    blocked = node.domain == "com.microsoft.nchwc"
    why = "the last block is padded" if blocked else "it runs outside of the blocked layout"
    if depthwise:
        yield "channels", groups, block, why
        return
    yield "outputs", outputs, block, why
    if inputs > block:  # an image's few channels are read as they are
        yield "inputs", inputs, block, why


def _integer_blocks(
    inputs: int, outputs: int, groups: int, signed: bool, wide: bool
) -> Iterator[tuple[str, int, int, str]]:
    if groups > 1 and inputs == outputs == 1:
        slow = "the quick depthwise kernel takes none of the layer" if signed else (
            "those beyond go by eight, then one by one"
        )  # fmt: skip
        yield "channels", groups, 16, slow
        return
    step = 4 if wide else 8
    direct = signed and groups == 1
    misses = direct and bool(outputs % step)
    why = "the direct kernel does not take the layer" if misses else "the last block is padded"
    yield "outputs", outputs, 16, why
    if direct and inputs > 4:
        yield "inputs", inputs, 4, "the direct kernel does not take the layer"


def _signed(node: onnx.NodeProto, graph: Graph) -> bool:
    """Tell whether the weight that runs is int8; ONNX Runtime may have made it uint8."""
    weight = graph.constants.get(node.input[3])
    return weight is not None and weight.data_type == onnx.TensorProto.INT8


# In words.


def render(found: Explanation, everything: bool = False) -> Iterator[str | Table]:
    """Yield lines and tables that say what :func:`explain` found.

    Args:
        found: What to say.
        everything: All nodes and widths, not the longest only.
    """
    yield _header(found)
    yield from _unrest(found)
    yield ""
    yield from _node_lines(found.nodes, None if everything else 15)
    yield _operator_table(found)
    yield ""
    yield from _island_lines(found)
    yield ""
    yield from _moving_lines(found)
    yield ""
    if _blocks_are_known(found.processor):
        yield from _width_lines(found.widths, None if everything else 10)
    else:
        yield "Widths that miss the kernel's block: not known for this processor"


def _header(found: Explanation) -> str:
    threads = f"{found.threads} thread" + ("s" if found.threads > 1 else "")
    return (
        f"{found.file}: {found.size_bytes:,} bytes, {found.precision}, {found.median_ms:.3f} ms a "
        f"run (p10 {found.p10_ms:.3f}, p90 {found.p90_ms:.3f}), {threads}, {found.runtime}, "
        f"{found.processor}"
    )


def _unrest(found: Explanation) -> Iterator[str]:
    if found.p90_ms > 1.5 * found.p10_ms:
        yield "Runs differ by more than half: something else is busy on this machine."


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in ("ms", "share", "count")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _node_lines(nodes: tuple[Node, ...], most: int | None) -> Iterator[str | Table]:
    table = _table("node", "operator", "type", "reads", "gives", "ms", "share")
    for node in nodes[:most]:
        shapes = ("x".join(map(str, shape)) for shape in (node.reads, node.gives))
        table.add_row(node.name, node.operator, node.element, *shapes, *_time(node.ms, node.share))
    yield table
    rest = nodes[most:] if most else ()
    if rest:
        share = 100 * sum(node.share for node in rest)
        yield f"and {len(rest)} more with {share:.1f} % of the time; --all shows them"
    yield "(Medians under the profiler, which slows a run; integer layers keep channels last.)"
    yield ""


def _time(ms: float, share: float) -> tuple[str, str]:
    return f"{ms:.3f}", f"{100 * share:.1f} %"


def _operator_table(found: Explanation) -> Table:
    table = _table("operator", "count", "ms", "share")
    for name, sums in found.operators().items():
        table.add_row(name, str(int(sums["count"])), *_time(sums["ms"], sums["share"]))
    return table


def _island_lines(found: Explanation) -> Iterator[str]:
    if found.precision == "float":
        yield "Still in float: all of it; `secateur quantize` makes an int8 file"
        return
    edges = ", ".join(found.edges) or "none"
    if not found.islands:
        yield f"Still in float: nothing; conversions at the edges, as must be: {edges}"
        return
    yield f"Still in float: {len(found.islands)}, with {len(found.conversions)} conversions inside"
    for island in found.islands:
        spent = "" if island.ms is None else f", {island.ms:.3f} ms"
        yield f"  {island.name} ({island.operator}{spent}): {island.why}"
        yield f"    {island.remedy}"
    yield f"  conversions at the edges, as must be: {edges}"


def _moving_lines(found: Explanation) -> Iterator[str]:
    moving = found.operators(MOVERS)
    if not moving:
        yield "Only moves data: nothing"
        return
    ms, share = (sum(sums[key] for sums in moving.values()) for key in ("ms", "share"))
    each = ", ".join(f"{name} {int(sums['count'])}" for name, sums in moving.items())
    yield f"Only moves data: {100 * share:.1f} % of the time, {ms:.3f} ms ({each})"
    if {"Transpose", "Split", "Gather"} & set(moving) and share > 0.02:
        yield "  a channel shuffle folds into the layers around it: export anew, `secateur export`"


def _width_lines(widths: tuple[Width, ...], most: int | None) -> Iterator[str]:
    """Say what is the same of several layers once."""
    layers: dict[str, list[Width]] = {}
    for width in widths:
        layers.setdefault(str(width), []).append(width)
    spent = {says: sum(width.ms for width in same) for says, same in layers.items()}
    names = {width.name for width in widths}
    yield f"Widths that miss the kernel's block: {f'{len(names)} layers' if names else 'none'}"
    for says in sorted(layers, key=lambda says: -spent[says])[:most]:
        first, *others = [width.name for width in layers[says]]
        more = f" and {len(others)} more" if others else ""
        yield f"  {says}"
        yield f"    {first}{more}, {spent[says]:.3f} ms in all"
    if most and len(layers) > most:
        yield f"  and {len(layers) - most} widths more; --all shows them"
