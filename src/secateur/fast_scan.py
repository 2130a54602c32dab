"""Many masked versions of one network, evaluated together: what they have in common runs once.

Masking units of a group changes only what the group's readers see. So the network up to the readers
runs once for a batch of images, and the part behind them once for each level, on ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from secateur.batch_last import BatchLast, tensor_name
from secateur.data import Images, Preparation
from secateur.pruning.channels import Group, Member
from secateur.pruning.wiring import INPUTS
from secateur.runtime import session_options
from secateur.tape import Call, Tape, Unsupported, Value, record

BATCH = 64
"""Images side by side: wide enough for vector units, and activations stay in the cache."""

_MEMORY = 256 * 2**20  # bytes of activations that a thread may keep of one batch
Bools = npt.NDArray[np.bool_]
Feed = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Level:
    """What is masked at one point of a scan.

    Attributes:
        groups: Groups with, for each unit, whether it is masked, shape (units,).
        weights: Linear layers pruned by single weights, with what is kept of each.
    """

    groups: tuple[tuple[Group, Bools], ...] = ()
    weights: tuple[tuple[str, Tensor], ...] = ()


@dataclass(frozen=True, eq=False)
class _Part:
    """What runs once for each of some levels: all that depends on the layers that they mask."""

    session: onnxruntime.InferenceSession
    inputs: tuple[Value, ...]
    levels: tuple[tuple[int, Feed, dict[str, Bools]], ...]


class FastEngine:
    """Evaluates levels of one network.

    Args:
        model: On the CPU; its weights are read when it is given.
        shape: Of one image, (C, H, W), as the network reads it.
        threads: How many batches to work on at a time.

    Raises:
        Unsupported: The network does what a graph of this kind has no words for.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], threads: int) -> None:
        self._threads = threads
        self._weights = {
            name: tensor.detach().float().numpy()
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        tape = record(model, (BATCH, *shape))
        per_image = sum(4 * np.prod(v.shape) for call in tape.calls for v in call.outputs) / BATCH
        batch = BATCH
        while batch > 8 and batch * per_image > _MEMORY:
            batch //= 2
        self._tape: Tape = tape if batch == BATCH else record(model, (batch, *shape))
        self._source = BatchLast(self._tape, self._weights)
        self._calls_of: dict[str, list[Call]] = {}
        for call in self._tape.calls:
            for weight in call.weights:
                self._calls_of.setdefault(weight.name, []).append(call)

    def correct(
        self,
        levels: Sequence[Level],
        images: Images,
        prepare: Preparation,
        progress: Callable[[int], None] | None = None,
    ) -> Bools:
        """Tell for each level and image whether the class with the highest score is the label.

        Args:
            levels: L of them.
            images: N images.
            prepare: From stored pixels to the network's input.
            progress: Told how many levels' worth of images are done, now and then.

        Returns:
            Shape (L, N).

        Raises:
            Unsupported: A layer that is masked is not one whose input can be.
        """
        parts = self._parts(levels)
        needs = dict.fromkeys(value for part in parts for value in part.inputs)
        shared = [value for value in needs if value != self._tape.image]
        prefix = self._session(
            self._source.graph(self._before(shared), [self._tape.image], shared)
        ) if shared else None  # fmt: skip
        right = np.zeros((len(levels), len(images)), np.bool_)
        size = self._tape.image.shape[0]

        def work(start: int) -> int:
            pixels = images.pixels[start : start + size]
            wide = self._source.store(prepare(pixels).numpy())
            feed = {tensor_name(self._tape.image): wide}
            if prefix is not None:
                names = [tensor_name(value) for value in shared]
                feed |= dict(zip(names, prefix.run(names, feed), strict=True))
            labels = images.labels[start : start + size].numpy()
            for part in parts:
                for index, said in self._classes(part, feed):
                    right[index, start : start + size] = said[: len(labels)] == labels
            return len(labels)

        with ThreadPoolExecutor(self._threads) as pool:
            done = 0
            for count in pool.map(work, range(0, len(images), size)):
                done += count
                if progress is not None:
                    progress(done)
        return right

    def _classes(self, part: _Part, feed: Feed) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        given = {tensor_name(value): feed[tensor_name(value)] for value in part.inputs}
        for index, masks, kept in part.levels:
            weights = {
                f"weight_{name}": (self._weights[name] * mask)[..., None, None]
                for name, mask in kept.items()
            }
            (logits,) = part.session.run(None, {**given, **masks, **weights})
            yield index, logits.argmax(1).reshape(-1)

    def _parts(self, levels: Sequence[Level]) -> list[_Part]:
        """Levels that mask the same layers share a session."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for index, level in enumerate(levels):
            key = (*(group.name for group, _ in level.groups), "", *(n for n, _ in level.weights))
            alike.setdefault(key, []).append(index)
        return [self._part([(i, levels[i]) for i in chosen]) for chosen in alike.values()]

    def _part(self, levels: list[tuple[int, Level]]) -> _Part:
        first = levels[0][1]
        readers = {id(c): c for group, _ in first.groups for m in group.readers()
                   for c in self._readers(m)}  # fmt: skip
        linear = [f"{name}.weight" for name, _ in first.weights]
        starts = [*readers.values(), *(call for name in linear for call in self._calls(name))]
        calls = self._tape.after(starts) if starts else list(self._tape.calls)
        made = {value for call in calls for value in call.outputs}
        inputs = tuple(dict.fromkeys(v for c in calls for v in c.inputs if v not in made))
        graph = self._source.graph(
            calls, inputs, [self._tape.logits], readers.values(), weight_inputs=linear
        )
        feeds = tuple(
            (
                index,
                self._masks(level),
                {f"{name}.weight": kept.numpy() for name, kept in level.weights},
            )
            for index, level in levels
        )
        return _Part(self._session(graph), inputs, feeds)

    def _masks(self, level: Level) -> Feed:
        masks: Feed = {}
        for group, gone in level.groups:
            for member in group.readers():
                call = self._readers(member)[0]
                width = self._source.shape(call.inputs[0])[1]
                name = f"mask_{member.axis.tensor}"
                mask = masks.setdefault(name, np.ones((1, width, 1, 1), np.float32))
                mask[:, member.index[gone[member.unit]]] = 0
        return masks

    def _readers(self, member: Member) -> list[Call]:
        calls = self._calls(member.axis.tensor)
        plain = all(call.op in ("addmm", "mm") or call.args[8] == 1 for call in calls)
        if member.axis.axis != INPUTS and not (member.axis.axis == 1 and plain):
            raise Unsupported(f"{member.axis.tensor} reads channels along axis {member.axis.axis}")
        return calls

    def _calls(self, weight: str) -> list[Call]:
        calls = self._calls_of.get(weight, [])
        if not calls or any(call.op not in ("convolution", "addmm", "mm") for call in calls):
            raise Unsupported(f"{weight} is not the weight of a layer")
        return calls

    def _before(self, values: Sequence[Value]) -> list[Call]:
        """The calls that ``values`` need."""
        needed = set(values)
        found = []
        for call in reversed(self._tape.calls):
            if not needed.isdisjoint(call.outputs):
                needed.update(call.inputs)
                found.append(call)
        return found[::-1]

    def _session(self, graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
        try:
            return onnxruntime.InferenceSession(
                graph.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise Unsupported(f"ONNX Runtime: {error}".splitlines()[0]) from error
