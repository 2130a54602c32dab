"""Widths for a time limit, chosen by a made-up clock; and how measured layers are remembered."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from secateur import remove
from secateur.benchmarking import layer_timer as layer_latency
from secateur.benchmarking.layer_timer import Layer, LayerTimer, copies_of, layer_graph
from secateur.errors import NetworkError
from secateur.pruning.find import find_prunable
from secateur.pruning.geometry import Geometry, list_calls
from secateur.pruning.importance import channel_importance
from secateur.pruning.latency import Choice, candidates, losses, reach_latency
from secateur.pruning.planner import plan_widths
from secateur.pruning.removal import plan_removal
from secateur.quantization.weights import is_saturation_free

SHAPE = (3, 16, 16)
FIXED = 0.5
"""Milliseconds of the made-up machine beyond its layers."""


class Small(nn.Module):
    """conv 3>64, depthwise 64, conv 64>32, pool, linear 32>10."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding="same", dilation=2, groups=64)
        self.point = nn.Conv2d(64, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.point(self.deep(self.stem(x).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def straight(layer: Layer) -> float:
    """A machine on which time is multiply-accumulates, 1 M a millisecond."""
    return layer.weights * math.prod(layer.result) / 1e6


def cliff(layer: Layer) -> float:
    """One that is slow where a layer's outputs are not a multiple of 16."""
    return straight(layer) * (1 if layer.outputs % 16 == 0 else 3)


class Clock:
    """Times layers by a function; the reference takes one millisecond."""

    reference = 1.0

    def __init__(self, function):
        self.function = function

    def __call__(self, layer):
        return self.function(layer)


class Machine:
    """Times whole networks by the clock of their layers, and the part that no layer explains."""

    def __init__(self, clock, fixed=FIXED):
        self.clock, self.fixed, self.loaded = clock, fixed, 0

    def load(self, network):
        self.loaded += 1
        example = torch.empty(1, *SHAPE, device="meta")
        return self.fixed + sum(self.clock(call.layer) for call in list_calls(network, example))

    def time(self, *networks):
        return list(networks)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = Small().eval()
    prunable = find_prunable(model, torch.zeros(1, *SHAPE))
    return model, prunable, channel_importance(model, prunable)


def reach(small, clock, target, machine=None):
    model, prunable, scores = small

    def plan(widths):
        return plan_widths(model, prunable, widths, scores, 1)

    machine = machine or Machine(clock)
    return reach_latency(model, prunable, scores, plan, target, 8, Clock(clock), machine)


# ---- which layers there are


def test_layers_are_listed_as_they_run(small):
    model, prunable, _ = small
    calls = list_calls(model, prunable.example)
    assert [(call.weight, call.layer.key) for call in calls] == [
        ("stem.weight", "conv 3>64/1 16x16 k3x3 s2x2 d1x1 p1x1x1x1"),
        ("deep.weight", "conv 64>64/64 8x8 k3x3 s1x1 d2x2 p2x2x2x2"),
        ("point.weight", "conv 64>32/1 8x8 k1x1 s1x1 d1x1 p0x0x0x0"),
        ("head.weight", "linear 32>10/1 1"),
    ]
    assert [call.layer.elements for call in calls] == [64 * 64, 64 * 64, 32 * 64, 10]
    assert [call.layer.weights for call in calls] == [64 * 27, 64 * 9, 64 * 32, 320]


def test_narrower_groups_make_narrower_layers(small):
    model, prunable, scores = small
    geometry = Geometry(model, prunable)
    widths = {"stem": 24, "point": 8}
    assert geometry.touched == {"stem": [0, 1, 2], "point": [2, 3]}
    predicted = geometry.layers(widths)
    assert [(layer.inputs, layer.outputs, layer.groups) for layer in predicted] == [
        (3, 24, 1), (24, 24, 24), (24, 8, 1), (8, 10, 1),
    ]  # fmt: skip
    smaller = remove(model, plan_widths(model, prunable, widths, scores, 1))
    assert [call.layer for call in list_calls(smaller, prunable.example)] == predicted


# ---- what is chosen


def test_target_is_reached_and_little_more_than_that(small):
    found = reach(small, straight, 0.8)
    assert 0.7 < found.ratio <= 0.8
    assert found.pruned == pytest.approx(found.predicted)
    assert 0 < found.kept < 1
    assert all(width % 8 == 0 for width in found.widths.values())


def test_a_width_that_is_slower_than_a_larger_one_is_never_chosen(small):
    for target in (0.95, 0.9, 0.8, 0.7):
        widths = reach(small, cliff, target).widths
        assert widths["stem"] % 16 == widths["point"] % 16 == 0, (target, widths)


def test_58_next_to_a_fast_64_is_not_a_candidate_for_long():
    """Eight of 66 channels at most are to go: 58 is three times as slow as 64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 66, 3), nn.ReLU(), nn.Conv2d(66, 10, 1), nn.Flatten()).eval()
    prunable = find_prunable(model, torch.zeros(1, 3, 3, 3))
    table = {66: 1.0, 64: 0.6, 58: 1.8}

    def clock(layer):
        outputs = layer.outputs if layer.kernel == (3, 3) else layer.inputs
        return table.get(outputs, outputs / 66)

    scores = channel_importance(model, prunable)
    choice = Choice(prunable, scores, Geometry(model, prunable), 2, clock, 2.0)
    assert choice.within(1.9) == {"0": 64}


def test_steps_that_a_later_one_makes_needless_are_taken_back(small):
    """Two cheap steps of ``point`` come first; then one of ``stem`` saves enough for all."""
    model, prunable, _ = small
    scores = {"stem": np.ones(64), "point": np.ones(32)}

    def clock(layer):
        stem = 0.5 if layer.inputs == 3 and layer.outputs > 32 else 0.0
        head = 0.15 * layer.inputs / 8 if layer.kind == "linear" else 0.0
        return stem + head

    choice = Choice(prunable, scores, Geometry(model, prunable), 8, clock, 1.1)
    assert choice.within(0.9) == {"stem": 64, "point": 16}
    assert choice.within(0.65) == {"stem": 32, "point": 32}


def test_steps_jump_over_widths_that_save_nothing(small):
    def blocks(layer):
        return math.ceil(layer.outputs / 32) * math.ceil(layer.inputs / 32)

    found = reach(small, blocks, 0.8, Machine(blocks, fixed=0.0))
    assert found.ratio <= 0.8
    assert found.widths["stem"] == 32


def test_what_layers_do_not_explain_is_learned_from_the_smaller_network(small):
    machine = Machine(straight, fixed=1.0)
    found = reach(small, straight, 0.9, machine)
    assert 0.85 < found.ratio <= 0.9
    assert machine.loaded > 2, "the first smaller network misses, because fixed time stays"
    assert found.predicted == pytest.approx(found.pruned)


def test_a_target_out_of_reach_is_one_clear_error(small):
    with pytest.raises(NetworkError, match=r"target cannot be reached \(target = 0.1 of latency\)"):
        reach(small, straight, 0.1, Machine(straight, fixed=5.0))


def test_what_matters_stays(small):
    model, prunable, scores = small
    scores = {"stem": np.full(64, 1.0), "point": np.r_[np.zeros(24), np.ones(8)]}
    widths = reach((model, prunable, scores), straight, 0.9).widths
    assert widths["point"] == 8, "24 channels without importance go first"


def test_losses_are_those_of_what_is_kept():
    np.testing.assert_allclose(losses(np.array([1.0, 3.0]), 2), [np.inf, -np.log(0.75), 0])
    np.testing.assert_allclose(losses(np.zeros(4), 2), [np.inf, np.log(2), 0])
    assert losses(np.array([np.inf, 1.0]), 2).tolist() == [np.inf, np.inf, 0]


def test_groups_of_infinite_importance_stay_whole(small):
    model, prunable, scores = small
    found = reach((model, prunable, scores | {"stem": np.full(64, np.inf)}), straight, 0.95)
    assert found.widths["stem"] == 64


def test_candidates_are_multiples_up_to_all_of_it(small):
    _, prunable, scores = small
    group = prunable.group("point")
    assert candidates(group, 12, losses(scores["point"], 32)) == [12, 24, 32]


def test_one_call_plans_for_latency(small, monkeypatch):
    from secateur.pruning import latency

    model, _, _ = small
    asked = []
    monkeypatch.setattr(latency, "NetworkTimer", lambda *what: asked.append(what) or Machine(cliff))
    clock = Clock(cliff)
    clock.save = lambda: asked.append("saved")
    monkeypatch.setattr(latency, "LayerTimer", lambda *what: asked.append(what) or clock)
    plan = plan_removal(
        model, torch.zeros(2, *SHAPE), objective="latency", target=0.8, precision="fp32", threads=3
    )
    assert asked == [("fp32", 3), (SHAPE, "fp32", 3), "saved"]
    machine = Machine(cliff)
    assert machine.load(remove(model, plan)) <= 0.8 * machine.load(model)


def test_arguments_out_of_range(small):
    model, _, _ = small
    with pytest.raises(ValueError, match="precision: Input should be"):
        plan_removal(model, torch.zeros(1, *SHAPE), precision="int4")


# ---- measured layers


LAYERS = [
    Layer("conv", 6, 12, 1, (9, 7), (3, 3), (2, 1), (1, 2), (1, 2, 1, 2)),
    Layer("conv", 6, 6, 6, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    Layer("conv", 4, 6, 2, (11,), (5,), (2,), (1,), (0, 0)),
    Layer("linear", 12, 5, 1, (3,)),
]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.key)
def test_graph_of_a_layer_is_valid_and_runs(layer, precision):
    model = layer_graph(layer, precision, copies=3)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    kind = {"fp32": np.float32, "int8": np.uint8}[precision]
    results = session.run(None, {"x": np.ones(given.shape, kind)})
    pixels = [1] * len(layer.size)
    shape = (*layer.size, layer.outputs) if layer.kind == "linear" else (1, layer.outputs, *pixels)
    assert [result.shape for result in results] == [shape] * 3


@pytest.mark.parametrize("layer", LAYERS[:2], ids=lambda layer: layer.key)
def test_pixels_of_a_result_are_those_of_torch(layer):
    conv = nn.Conv2d(
        layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.pads[:2], layer.dilation,
        layer.groups,
    )  # fmt: skip
    assert conv(torch.zeros(1, layer.inputs, *layer.size)).shape[2:] == layer.result


def test_int8_layers_run_on_integers(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    for layer, kernel in ((LAYERS[1], "QLinearConv"), (LAYERS[3], "QGemm")):
        model = layer_graph(layer, "int8", copies=2).SerializeToString()
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        ran = onnx.load(tmp_path / "optimized.onnx").graph.node
        assert sum(node.op_type == kernel for node in ran) == 2
        assert not any(node.op_type in ("Conv", "Gemm", "DequantizeLinear") for node in ran)


def test_layers_run_on_the_kernels_of_files_that_ship(monkeypatch, tmp_path):
    model = layer_graph(LAYERS[1], "int8", copies=1)
    weight = next(t for t in model.graph.initializer if t.name == "w0")
    assert is_saturation_free(onnx.numpy_helper.to_array(weight))  # as its metadata says
    asked = []

    def session_options(threads, saturation_free=False):
        asked.append(saturation_free)
        return onnxruntime.SessionOptions()

    monkeypatch.setattr(layer_latency, "session_options", session_options)
    LayerTimer("int8", 1, tmp_path)(LAYERS[1])
    assert asked.count(True) == 2  # the layer and the reference


def test_copies_lift_small_layers_and_spare_memory():
    small, large = Layer("linear", 64, 10, 1, (1,)), Layer("linear", 9216, 4096, 1, (1,))
    assert copies_of(small) > 1
    assert copies_of(large) == 1


def test_one_layer_is_measured_for_real(tmp_path):
    clock = LayerTimer("int8", 1, tmp_path)
    assert clock(LAYERS[1]) > 0
    clock.reference.run(np.zeros((1, 3, 4, 4), np.float32))


# ---- the file


def counting(asked, value=2.0):
    def ratio(layer):
        asked.append(layer)
        return value

    return ratio


def test_a_layer_is_measured_once_for_all_times(tmp_path):
    asked = []
    clock = LayerTimer("int8", 2, tmp_path, counting(asked))
    assert clock(LAYERS[0]) == clock(LAYERS[0]) == 2.0
    assert (clock.fresh, len(asked)) == (1, 1)
    clock.save()
    again = LayerTimer("int8", 2, tmp_path, counting(asked))
    assert again(LAYERS[0]) == 2.0
    assert (again.fresh, len(asked)) == (0, 1)


def test_precisions_and_threads_do_not_share_a_file(tmp_path):
    paths = {
        LayerTimer(precision, threads, tmp_path).path
        for precision in ("int8", "fp32")
        for threads in (1, 2)
    }
    assert len(paths) == 4


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("2.0", "NaN"), lambda _: "[]"]
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    asked = []
    clock = LayerTimer("int8", 2, tmp_path, counting(asked))
    clock(LAYERS[0])
    clock.save()
    clock.path.write_text(damage(clock.path.read_text()))
    again = LayerTimer("int8", 2, tmp_path, counting(asked))
    assert again(LAYERS[0]) == 2.0
    assert len(asked) == 2
    again.save()
    assert json.loads(again.path.read_text())["ratios"] == {LAYERS[0].key: 2.0}


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path):
    first = LayerTimer("int8", 2, tmp_path, counting([]))
    second = LayerTimer("int8", 2, tmp_path, counting([]))
    first(LAYERS[0]), second(LAYERS[1])
    first.save(), second.save()
    assert len(json.loads(first.path.read_text())["ratios"]) == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    clock = LayerTimer("int8", 2, tmp_path / "file", counting([]))
    assert clock(LAYERS[0]) == 2.0
    clock.save()


def test_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert LayerTimer("fp32", 1).path.parent == tmp_path / "secateur"
