"""What a report shows, as plain data: the file ``report.json`` of a run.

Whoever compresses a network fills a :class:`Report` and calls
:func:`secateur.report.render.render_report`; every field but the title and the verdict is optional,
and a section of the page appears where its data is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.errors import StoreError

VERSION = 1
"""Of the file's layout; a reader refuses a later one."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Data):
    """A number with its bounds: a 95 % interval, or the 10th and 90th percentile of a latency."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1


class Verdict(_Data):
    """The result against the goal.

    Attributes:
        status: Whether the goal is met, missed or undecidable; ``none`` where no goal was set.
        sentence: The result in one sentence, without a full stop.
        proof: How sure that is, in a sentence or two.
        goal: The goal in words, for example ``at most 0.5 points less accurate``.
    """

    status: Literal["met", "missed", "undecided", "none"] = "none"
    sentence: str
    proof: str = ""
    goal: str = ""


class Variant(_Data):
    """One file that was measured on the test images.

    Attributes:
        name: ``reference``, ``pruned``, ``quantized``, ``packed`` or another.
        top1: Accuracy in percent, with its 95 % interval.
        drop: Reference minus this one, in points, paired on the same images.
        size_bytes: Of the file.
        latency: Milliseconds for one image: median, 10th and 90th percentile.
        samples_ms: Every timing, in ms, for the distribution.
        decodes_to: The variant that this file unpacks to, bit for bit.
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
    decodes_to: str = ""


class Candidate(_Data):
    """One network that was tried on the way, a point of the trade-off curve.

    Attributes:
        name: Short, for example ``macs 0.50, int8``.
        top1: Accuracy in percent on the images of ``split``.
        split: ``validation`` or ``test``.
        chosen: Whether this is the network that ships.
        settings: What was tried, in words, for example ``{"pruned": "50 %"}``.
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
        name: In the ONNX file.
        label: As people say it, for example ``stage 2, block 1, depthwise 3×3``.
        block: The block that the drawing puts it in, for example ``stage 2, block 1``.
        output: Shape of its output in the reference, without the batch.
        channels_before: Output channels in the reference.
        channels_after: Output channels that are left; 0 where the layer is gone.
        bits: Of its weights in the file that ships.
        microseconds_before: Median time in the reference, where it was profiled.
        microseconds_after: Median time in the file that ships.
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
    """How far confidence is accuracy (Guo et al. 2017): 15 bins of equal width, and ECE."""

    ece: float
    bins: tuple[Bin, ...]


class Answer(_Data):
    """What a network says of an image: a class and the probability it gives to it."""

    label: int
    confidence: float


class Flip(_Data):
    """An image of which reference and result say different things."""

    index: int
    label: int
    before: Answer
    after: Answer
    png: str = ""
    """The image as base64 of a PNG file."""


class ImageChanges(_Data):
    """What changed for images.

    Attributes:
        split: Which images.
        classes: Names in the order of the labels.
        confusion_before: Rows are labels, columns answers.
        flips: Some images of which the answer changed, the most confident first.
        flipped: How many changed in all.
        lost: How many were right and are wrong now.
        won: How many were wrong and are right now.
        margin_changes: Edges and counts of a histogram: after minus before, of the margin between
            the label's logit and the highest other one.
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
    """What the files of a run changed, and their raw timings: the file ``changes.json`` of a stage.

    Attributes:
        layers: Of the reference and of the file that ships.
        images: On the test images.
        samples_ms: Variant to every timing in ms.
    """

    layers: tuple[Layer, ...] = ()
    images: ImageChanges | None = None
    samples_ms: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class Step(_Data):
    """One rung of the ladder from the start to what ships, for example ``ONNX Runtime, pruned``."""

    name: str
    latency: Estimate
    memory_mb: float | None = None


class Point(_Data):
    """One point of a curve."""

    x: float
    y: Estimate


class Series(_Data):
    """Points that one line joins, by rising x; ``name`` is empty where there is one series."""

    name: str = ""
    points: tuple[Point, ...]


class Curve(_Data):
    """A curve with its intervals as a band, for example accuracy by fraction pruned.

    Attributes:
        name: Stem of the figure's file.
        title: What is drawn, in a few words.
        x_title: Of the x axis, with its unit.
        mark_x: Value that a vertical line marks, and what it is.
        mark_y: Value that a horizontal line marks, and what it is.
        group: The section of the page: ``scan`` or ``training``.
        y_limits: Range of the y axis; its data's where None.
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
    """Points of accuracy that each layer costs when it alone is pruned, by fraction.

    Attributes:
        fractions: In [0, 1], rising.
        layers: Name and, for each fraction, the drop; None where it was not scanned.
    """

    fractions: tuple[float, ...]
    layers: tuple[tuple[str, tuple[Estimate | None, ...]], ...]


class Provenance(_Data):
    """How it was made, and what one needs to repeat it.

    Attributes:
        recipe: TOML, or a command line.
        facts: Field to value: seed, versions, commit, processor, runtime, threads.
        stages: Name and seconds of each, in their order.
    """

    recipe: str = ""
    facts: dict[str, str] = Field(default_factory=dict)
    stages: tuple[tuple[str, float], ...] = ()


class Download(_Data):
    """A file beside the report.

    Attributes:
        href: Relative to the page.
    """

    href: str
    size_bytes: int
    note: str = ""


class Report(_Data):
    """Everything one page shows.

    Attributes:
        title: Name of the run.
        description: One line.
        facts: Network, data set and so on, in short words.
        variants: Reference first; the last one ships.
        candidates: Points of the trade-off curve.
        downloads: Files beside the page, the one to ship first.
        usage: Lines of Python or shell that run the network.
        scan_note: What the scan of sensitivity found, in a sentence.
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


def read_report(path: Path) -> Report:
    """Read a ``report.json``.

    Raises:
        StoreError: The file is missing, not a report, or of a newer version.
    """
    try:
        report = Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise StoreError("cannot read report", where=path, found=error) from error
    if report.version > VERSION:
        raise StoreError(
            "a report of a newer Secateur",
            where=path,
            expected=f"version {VERSION} at most",
            found=report.version,
        )
    return report
