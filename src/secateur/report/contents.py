"""The contents of a report as plain data: the file ``report.json`` of a run.

A caller fills a :class:`Report` and calls :func:`secateur.report.render.render_report`. All fields
but title and verdict are optional; a section of the page is shown if its data is present.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.disk import read_bytes
from secateur.errors import StoreError

VERSION = 1
"""Version of the file format; readers reject later ones."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Data):
    """A number with its bounds: a 95 % interval, or the 10th and 90th percentile of a latency."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1


class Verdict(_Data):
    """The result relative to the goal.

    Attributes:
        status: Whether the goal is met, missed or undecided; ``none`` without a goal.
        sentence: The result in one sentence, without a full stop.
        proof: The evidence, in a sentence or two.
        goal: The goal in words, for example ``at most 0.5 points less accurate``.
    """

    status: Literal["met", "missed", "undecided", "none"] = "none"
    sentence: str
    proof: str = ""
    goal: str = ""


class Variant(_Data):
    """One file, measured on the test images.

    Attributes:
        name: ``reference``, ``pruned``, ``quantized``, ``packed`` or another.
        top1: Accuracy in percent, with its 95 % interval.
        drop: Reference minus this variant in points, paired on the same images.
        size_bytes: Size of the file.
        latency: Milliseconds for one image: median, 10th and 90th percentile.
        samples_ms: Every timing, in ms, for the distribution.
        memory_mb: Peak memory of a separate process that opens the file and runs one image, without
            libraries; MB = 10^6 bytes.
        decodes_to: The variant that this file decodes to, bit for bit.
    """

    name: str
    top1: Estimate | None = None
    drop: Estimate | None = None
    parameters: float | None = None
    nonzero_parameters: float | None = None
    macs: float | None = None
    size_bytes: float | None = None
    latency: Estimate | None = None
    samples_ms: tuple[float, ...] = ()
    memory_mb: float | None = None
    decodes_to: str = ""


class Candidate(_Data):
    """One candidate of a search, a point of the trade-off curve.

    Attributes:
        name: Short name, for example ``macs 0.50, int8``.
        top1: Accuracy in percent on the images of ``split``.
        split: ``validation`` or ``test``.
        chosen: Whether this is the chosen candidate.
        settings: Settings in words, for example ``{"pruned": "50 %"}``.
    """

    name: str
    top1: Estimate
    split: str = "validation"
    size_bytes: float | None = None
    latency: Estimate | None = None
    macs: float | None = None
    chosen: bool = False
    settings: dict[str, str] = Field(default_factory=dict)


class Layer(_Data):
    """One convolution or linear layer, before and after.

    Attributes:
        name: Name in the ONNX file.
        label: Name for people, for example ``stage 2, block 1, depthwise 3×3``.
        block: Block in the drawing, for example ``stage 2, block 1``.
        output: Shape of its output in the reference, without the batch.
        channels_before: Output channels in the reference.
        channels_after: Remaining output channels; 0 if the layer was removed.
        bits: Bits of its weights in the final file.
        microseconds_before: Median time in the reference, if profiled.
        microseconds_after: Median time in the final file, if profiled.
    """

    name: str
    label: str
    block: str
    operator: str
    output: tuple[int, ...] = ()
    channels_before: int
    channels_after: int
    bits: int = 32
    microseconds_before: float | None = None
    microseconds_after: float | None = None


class Bin(_Data):
    """Images whose confidence lies in one interval of a reliability curve."""

    confidence: float
    accuracy: float
    n: int


class Calibration(_Data):
    """Calibration of confidence (Guo et al. 2017): 15 bins of equal width, and ECE."""

    ece: float
    bins: tuple[Bin, ...]


class Answer(_Data):
    """A network's prediction for an image: class and probability."""

    label: int
    confidence: float


class Flip(_Data):
    """An image with different predictions of reference and result."""

    index: int
    label: int
    before: Answer
    after: Answer
    png: str = ""
    """The image as base64 of a PNG file."""


class ImageChanges(_Data):
    """Changed predictions of images.

    Attributes:
        split: ``validation`` or ``test``.
        classes: Class names in the order of the labels.
        confusion_before: Confusion matrix; rows are labels, columns predictions.
        flips: Some images with a changed prediction, the most confident first.
        flipped: Number of changed predictions.
        lost: Number of images that became wrong.
        won: Number of images that became correct.
        margin_edges: Edges of a histogram of the change in margin, the label's logit minus the
            highest other one.
        margin_counts: Its counts.
    """

    split: str = "test"
    classes: tuple[str, ...]
    confusion_before: tuple[tuple[int, ...], ...]
    confusion_after: tuple[tuple[int, ...], ...]
    calibration_before: Calibration
    calibration_after: Calibration
    flips: tuple[Flip, ...] = ()
    flipped: int
    lost: int
    won: int
    margin_edges: tuple[float, ...] = ()
    margin_counts: tuple[int, ...] = ()


class Changes(_Data):
    """Differences between the files of a run, and raw timings: ``changes.json`` of a stage.

    Attributes:
        layers: Layers of the reference and of the final file.
        images: Changes on the test images.
        samples_ms: From variant to every timing in ms.
        memory_mb: From variant to its memory, as in :class:`Variant`.
    """

    layers: tuple[Layer, ...] = ()
    images: ImageChanges | None = None
    samples_ms: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    memory_mb: dict[str, float] = Field(default_factory=dict)


class Step(_Data):
    """One step from the reference to the final file, for example ``ONNX Runtime, pruned``."""

    name: str
    latency: Estimate


class Point(_Data):
    """One point of a curve."""

    x: float
    y: Estimate


class Series(_Data):
    """Points of one line, by increasing x; ``name`` is empty for a single series."""

    name: str = ""
    points: tuple[Point, ...]


class Curve(_Data):
    """A curve with intervals as a band, for example accuracy by fraction pruned.

    Attributes:
        name: Stem of the figure's file.
        title: Title in a few words.
        x_title: Title of the x axis, with its unit.
        mark_x: Position and label of a vertical line.
        mark_y: Position and label of a horizontal line.
        group: Section of the page: ``scan`` or ``training``.
        y_limits: Range of the y axis; None for the range of the data.
    """

    name: str
    title: str
    x_title: str
    series: tuple[Series, ...]
    mark_x: tuple[float, str] | None = None
    mark_y: tuple[float, str] | None = None
    group: Literal["scan", "training"] = "scan"
    y_limits: tuple[float, float] | None = None


class Sensitivity(_Data):
    """Loss of accuracy in points if each layer is pruned separately, by fraction.

    Attributes:
        fractions: Increasing, in [0, 1].
        layers: Name and, for each fraction, the drop; None if not scanned.
    """

    fractions: tuple[float, ...]
    layers: tuple[tuple[str, tuple[Estimate | None, ...]], ...]


class Provenance(_Data):
    """Provenance of a run, to repeat it.

    Attributes:
        recipe: TOML or a command line.
        facts: From field to value: seed, versions, commit, processor, runtime, threads.
        stages: Name and seconds of each stage, in order.
    """

    recipe: str = ""
    facts: dict[str, str] = Field(default_factory=dict)
    stages: tuple[tuple[str, float], ...] = ()


class Download(_Data):
    """A file beside the report.

    Attributes:
        href: Path relative to the page.
    """

    href: str
    size_bytes: int
    note: str = ""


class Report(_Data):
    """The contents of one page.

    Attributes:
        title: Name of the run.
        description: Description in one line.
        facts: Short facts, such as network and data set.
        variants: The reference first, the final file last.
        candidates: Points of the trade-off curve.
        downloads: Files beside the page, the final one first.
        usage: Python or shell code that runs the network.
        scan_note: Result of the sensitivity scan, in a sentence.
        notes: Sentences below the table of variants.
    """

    version: int = VERSION
    title: str
    description: str = ""
    facts: tuple[str, ...] = ()
    verdict: Verdict
    missing: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    downloads: tuple[Download, ...] = ()
    usage: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    scan_note: str = ""
    curves: tuple[Curve, ...] = ()
    sensitivity: Sensitivity | None = None
    images: ImageChanges | None = None
    notes: tuple[str, ...] = ()
    ladder: tuple[Step, ...] = ()
    provenance: Provenance = Provenance()

    def variant(self, name: str) -> Variant | None:
        """Return the variant of that name, or None."""
        return next((variant for variant in self.variants if variant.name == name), None)


_MOST_BYTES = 2**30


def read_report(path: Path) -> Report:
    """Read a ``report.json``.

    Raises:
        StoreError: The file is missing, not a report, or of a newer version.
    """
    try:
        report = Report.model_validate_json(read_bytes(path, _MOST_BYTES))
    except (StoreError, ValidationError) as error:
        raise StoreError("cannot read report", where=path, found=error) from error
    if report.version > VERSION:
        raise StoreError(
            "a report of a newer Secateur",
            where=path,
            expected=f"version {VERSION} at most",
            found=report.version,
        )
    return report
