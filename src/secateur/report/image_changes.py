"""Changes of predictions by compression, from the logits of both networks."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from secateur.report.contents import Answer, Bin, Calibration, Flip, ImageChanges

BINS = 15
SHOWN = 24
THUMBNAIL = 64

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]


class Pixels(Protocol):
    """Images that are read when sliced."""

    def __getitem__(self, chosen: slice, /) -> Any:
        """Return some images, an array or a tensor."""


def image_changes(
    labels: Labels,
    before: Logits,
    after: Logits,
    classes: Iterable[str],
    pixels: Pixels | None = None,
    split: str = "test",
) -> ImageChanges:
    """Compare two networks image by image.

    Args:
        labels: Labels, shape (n,).
        before: Logits of the reference, shape (n, classes).
        after: Logits of the compressed network, shape (n, classes).
        classes: Class names in the order of the labels.
        pixels: Images for thumbnails, uint8 (n, channels, height, width), array or tensor; None for
            no thumbnails.
        split: ``validation`` or ``test``.

    Example:
        >>> import numpy as np
        >>> before, after = np.array([[2.0, 0], [0, 2]]), np.array([[2.0, 0], [1, 0]])
        >>> image_changes(np.array([0, 1]), before, after, ["cat", "dog"]).lost
        1
    """
    names = tuple(classes)
    probabilities = [_softmax(before), _softmax(after)]
    answers = [logits.argmax(1) for logits in (before, after)]
    right = [answer == labels for answer in answers]
    changed = np.flatnonzero(answers[0] != answers[1])
    edges, counts = _margin_changes(labels, before, after)
    return ImageChanges(
        split=split,
        classes=names,
        confusion_before=_confusion(labels, answers[0], len(names)),
        confusion_after=_confusion(labels, answers[1], len(names)),
        calibration_before=calibration(probabilities[0], labels),
        calibration_after=calibration(probabilities[1], labels),
        flips=_flips(changed, labels, probabilities, pixels),
        flipped=len(changed),
        lost=int((right[0] & ~right[1]).sum()),
        won=int((~right[0] & right[1]).sum()),
        margin_edges=edges,
        margin_counts=counts,
    )


def calibration(probabilities: npt.NDArray, labels: Labels) -> Calibration:
    """Expected calibration error with 15 bins of equal width (Guo et al. 2017, equation 3).

    Args:
        probabilities: Probabilities, shape (n, classes).
        labels: Labels, shape (n,).

    Example:
        >>> import numpy as np
        >>> round(calibration(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])).ece, 3)
        0.3
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(confidence=float(confidence[own].mean()), accuracy=float(right[own].mean()), n=len(own))
        for own in (np.flatnonzero(index == number) for number in range(BINS))
        if len(own)
    )
    error = sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / max(len(labels), 1)
    return Calibration(ece=error, bins=bins)


def _softmax(logits: Logits) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _confusion(labels: Labels, answers: Labels, classes: int) -> tuple[tuple[int, ...], ...]:
    counts = np.bincount(labels * classes + answers, minlength=classes**2)
    return tuple(map(tuple, counts.reshape(classes, classes).tolist()))


def _margin_changes(
    labels: Labels, before: Logits, after: Logits
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    change = _margins(labels, after) - _margins(labels, before)
    # The outermost hundredths are counted in the last bars, to keep the middle readable.
    low, high = np.percentile(change, [0.5, 99.5])
    counts, edges = np.histogram(np.clip(change, low, high), bins=30)
    return tuple(np.round(edges, 4).tolist()), tuple(counts.tolist())


def _margins(labels: Labels, logits: Logits) -> npt.NDArray[np.float64]:
    """The label's logit minus the highest other one."""
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0].astype(np.float64)
    others = logits.astype(np.float64).copy()
    np.put_along_axis(others, labels[:, None], -np.inf, 1)
    return own - others.max(1)


def _flips(
    changed: npt.NDArray[np.intp],
    labels: Labels,
    probabilities: list[npt.NDArray],
    pixels: Pixels | None,
) -> tuple[Flip, ...]:
    confidence = sum(p[changed].max(1) for p in probabilities)
    first = changed[np.argsort(-confidence, kind="stable")][:SHOWN]
    return tuple(
        Flip(
            index=int(i),
            label=int(labels[i]),
            before=_answer(probabilities[0][i]),
            after=_answer(probabilities[1][i]),
            png="" if pixels is None else _thumbnail(np.asarray(pixels[i : i + 1])[0]),
        )
        for i in first
    )


def _answer(probabilities: npt.NDArray) -> Answer:
    label = int(probabilities.argmax())
    return Answer(label=label, confidence=round(float(probabilities[label]), 4))


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG file with sides of at most 64 pixels, as base64."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
