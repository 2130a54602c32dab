"""Evaluates many masked versions of a network by running only the parts that differ.

Masking units of a group multiplies the inputs of the group's readers by 0 or 1. For each batch of
images, the network up to the readers therefore runs once, and the rest once for each level. Both
run in ONNX Runtime, with the images of a batch as the innermost dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from secateur.data import Images, Preparation
from secateur.pruning.channels import Member
from secateur.pruning.tracing.channel_graph import INPUTS
from secateur.runtimes import session_options
from secateur.sensitivity.engine import Bools, Level, Progress, masked
from secateur.sensitivity.layout import Array, Layout, tensor_name
from secateur.sensitivity.scan_graph import missing, write_graph
from secateur.sensitivity.tape import Call, Unsupported, Value, record

BATCH = 128
"""Largest batch: enough for vector units, and small enough for the cache."""

_STEP = 16  # step of the batch size
_MEMORY = 512 * 2**20  # largest size of the activations of a batch, in bytes
_CHECKED = 16  # images for comparing each part with the network itself
_LAYERS = ("convolution", "addmm", "mm")

Feed = dict[str, Array]


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a network that depends on the layers masked by some levels.

    Attributes:
        session: ONNX Runtime session of the part.
        needs: Input values.
        levels: Index of each level with its masks.
    """

    session: onnxruntime.InferenceSession
    needs: Sequence[Value]
    levels: Sequence[tuple[int, Level, Feed]]


class FastEngine:
    """Evaluates levels on the CPU; see :class:`~secateur.sensitivity.engine.Engine`.

    Args:
        model: Weights are read at construction; the model is not modified.
        shape: Shape of the prepared images, (N, C, H, W).
        threads: Number of batches processed in parallel.

    Raises:
        Unsupported: The network cannot be written as such a graph.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int], threads: int) -> None:
        self._model, self._threads = model, threads
        named = [*model.named_parameters(), *model.named_buffers()]
        if any(t.device.type != "cpu" or t.dtype == torch.double for _, t in named):
            raise Unsupported("its weights are not float32 on the CPU")
        self._weights: Feed = {name: tensor.detach().float().numpy() for name, tensor in named}
        batch = min(BATCH, -shape[0] % _STEP + shape[0])
        self._tape = record(model, (batch, *shape[1:]))
        values = [value for call in self._tape.calls for value in call.outputs]
        image = sum(4 * math.prod(value.shape) for value in values) // batch
        if batch * image > _MEMORY:
            batch = max(1, _MEMORY // image // _STEP) * _STEP
            self._tape = record(model, (batch, *shape[1:]))
        self._layout = Layout(self._tape)
        self._calls_of: dict[str, list[Call]] = {}
        for call in self._tape.calls:
            for weight in call.weights:
                self._calls_of.setdefault(weight.name, []).append(call)

    def correct(
        self,
        levels: Sequence[Level],
        images: Images,
        prepare: Preparation,
        progress: Progress | None = None,
    ) -> Bools:
        """Evaluate ``levels`` together; see :meth:`Engine.correct`.

        Raises:
            Unsupported: A layer cannot be masked by its input, or a part's logits differ from those
                of the masked network.
        """
        parts = self._parts(levels)
        begin = self._begin(parts)
        right = np.zeros((len(levels), len(images)), np.bool_)
        self._check(parts, begin, prepare(images.pixels[:_CHECKED]))

        def work(first: int) -> int:
            chosen = slice(first, first + self._layout.batch)
            labels = images.labels[chosen].numpy()
            feed = begin(prepare(images.pixels[chosen]))
            for part in parts:
                for index, logits in self._run(part, part.levels, feed):
                    right[index, chosen] = logits.argmax(0)[: len(labels)] == labels
            return len(labels)

        with ThreadPoolExecutor(self._threads) as pool:
            images_done = reported = 0
            for count in pool.map(work, range(0, len(images), self._layout.batch)):
                images_done += count
                now = len(levels) * images_done // len(images)
                if progress is not None:
                    progress(now - reported)
                reported = now
        return right

    def _begin(self, parts: Sequence[_Part]) -> Callable[[Tensor], Feed]:
        """Return a function from prepared images to the input values of ``parts``."""
        image, needs = self._tape.image, [value for part in parts for value in part.needs]
        shared = [value for value in dict.fromkeys(needs) if value != image]
        names = [tensor_name(value) for value in shared]
        session = self._session(self._tape.before(shared), shared) if shared else None

        def begin(prepared: Tensor) -> Feed:
            feed = {tensor_name(image): self._layout.store(prepared.numpy())}
            if session is not None:
                feed |= dict(zip(names, session.run(names, feed), strict=True))
            return feed

        return begin

    def _run(
        self, part: _Part, levels: Sequence[tuple[int, Level, Feed]], feed: Feed
    ) -> Iterator[tuple[int, Array]]:
        """Yield index and logits, (classes, batch), of some levels of a part."""
        feeds = {tensor_name(value): feed[tensor_name(value)] for value in part.needs}
        for index, level, masks in levels:
            kept = {
                f"weight_{name}.weight": (self._weights[f"{name}.weight"] * mask.numpy())[
                    ..., None, None
                ]
                for name, mask in level.weights.items()
            }
            (logits,) = part.session.run(None, {**feeds, **masks, **kept})
            yield index, logits[0, :, 0]

    def _check(
        self, parts: Sequence[_Part], begin: Callable[[Tensor], Feed], prepared: Tensor
    ) -> None:
        """Compare the last level of each part with the masked network on a few images."""
        feed = begin(prepared)
        for part in parts:
            last = part.levels[-1]
            with masked(self._model, last[1]):
                expected = _logits(self._model, prepared)
            ((_, result),) = self._run(part, [last], feed)
            close = 1e-3 * max(1.0, float(np.abs(expected).max()))
            if not np.allclose(result[:, : len(prepared)], expected, rtol=0, atol=close):
                raise Unsupported(f"other logits than the network's at {last[1].layer}")

    def _parts(self, levels: Sequence[Level]) -> list[_Part]:
        """Group levels that mask the same layers into parts."""
        alike: dict[object, list[tuple[int, Level, Feed]]] = {}
        for index, level in enumerate(levels):
            key = (tuple(group.name for group, _ in level.groups), tuple(level.weights))
            alike.setdefault(key, []).append((index, level, self._masks(level)))
        return [self._part(some) for some in alike.values()]

    def _part(self, levels: list[tuple[int, Level, Feed]]) -> _Part:
        level = levels[0][1]
        members = [member for group, _ in level.groups for member in group.readers()]
        readers = [call for member in members for call in self._readers(member)]
        opened = [f"{name}.weight" for name in level.weights]
        starts = [*readers, *(call for name in opened for call in self._layers(name))]
        calls = self._tape.after(starts) if starts else list(self._tape.calls)
        session = self._session(calls, [self._tape.logits], readers, opened)
        return _Part(session, missing(calls), levels)

    def _masks(self, level: Level) -> Feed:
        masks: Feed = {}
        for group, units in level.groups:
            for member in group.readers():
                channels = self._layout.shape(self._readers(member)[0].inputs[0])[1]
                ones = np.ones((1, channels, 1, 1), np.float32)
                mask = masks.setdefault(f"mask_{member.axis.tensor}", ones)
                mask[:, member.index[units[member.unit]]] = 0
        return masks

    def _readers(self, member: Member) -> list[Call]:
        calls = self._layers(member.axis.tensor)
        full = all(call.op != "convolution" or call.args[8] == 1 for call in calls)
        if member.axis.axis != INPUTS and not (member.axis.axis == 1 and full):
            raise Unsupported(f"{member.axis.tensor} reads channels in another way")
        return calls

    def _layers(self, weight: str) -> list[Call]:
        calls = self._calls_of.get(weight, [])
        if not calls or any(call.op not in _LAYERS for call in calls):
            raise Unsupported(f"{weight} is not the weight of a layer")
        return calls

    def _session(
        self,
        calls: Sequence[Call],
        outputs: Sequence[Value],
        masked: Sequence[Call] = (),
        opened: Sequence[str] = (),
    ) -> onnxruntime.InferenceSession:
        """A single-threaded session of some calls; see ``write_graph``."""
        graph = write_graph(self._layout, self._weights, calls, outputs, masked, opened)
        try:
            return onnxruntime.InferenceSession(
                graph.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no public base class
            raise Unsupported(f"ONNX Runtime: {error}".splitlines()[0]) from error


@torch.inference_mode()
def _logits(model: nn.Module, prepared: Tensor) -> Array:
    """Logits of ``model``, (classes, N)."""
    training = model.training
    logits = model.eval()(prepared)
    model.train(training)
    return logits.T.numpy()
