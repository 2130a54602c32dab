"""Makes the report of a run from its records, its recipe and its changes."""

from __future__ import annotations

from collections.abc import Iterable

from secateur.records import Record
from secateur.report import numbers
from secateur.report.contents import (
    Candidate,
    Changes,
    Curve,
    Download,
    Estimate,
    Point,
    Provenance,
    Report,
    Sensitivity,
    Series,
    Step,
    Variant,
    Verdict,
)
from secateur.report.findings import Findings
from secateur.report.summary import (
    estimate,
    headline,
    missing,
    packed_sentence,
    parity_sentence,
    variants_of,
)
from secateur.wording import counted


def report_of(
    records: list[Record],
    name: str,
    description: str,
    recipe: str,
    changes: Changes,
    downloads: tuple[Download, ...] = (),
) -> Report:
    """Turn a run's records into the contents of its report.

    Args:
        records: Records of one run.
        name: Name of the run.
        description: Description in one line.
        recipe: Recipe as TOML.
        changes: Data beyond the records.
        downloads: Files beside the page.

    Raises:
        StoreError: See :meth:`secateur.report.findings.Findings.of`.
    """
    findings = Findings.of(records)
    about = findings.about
    variants = tuple(variants_of(findings, changes))
    return Report(
        title=name,
        description=description,
        facts=(
            f"{about.network} on {about.dataset}",
            about.geometry,
            f"{about.preset} preset",
            f"seed {about.seed}",
        ),
        verdict=_verdict(findings),
        missing=tuple(missing(findings)),
        variants=variants,
        candidates=tuple(_candidates(variants)),
        downloads=downloads,
        usage=_usage(downloads),
        layers=changes.layers,
        scan_note=_scan_note(findings),
        curves=tuple(_curves(findings)),
        sensitivity=_sensitivity(findings),
        images=changes.images,
        notes=tuple(filter(None, (parity_sentence(findings), packed_sentence(findings)))),
        ladder=tuple(_ladder(variants)),
        provenance=_provenance(findings, recipe),
    )


def _verdict(findings: Findings) -> Verdict:
    line = headline(findings)
    interval = f" ({line.interval})" if line.interval else ""
    return Verdict(sentence=line.claim + interval, proof=line.proof)


def _candidates(variants: tuple[Variant, ...]) -> Iterable[Candidate]:
    """Each variant as a point of the trade-off; the last one is the final file."""
    for variant in variants:
        if variant.top1 is not None:
            yield Candidate(
                name=variant.name,
                top1=variant.top1,
                split="test",
                size_bytes=variant.size_bytes,
                latency=variant.latency,
                macs=variant.macs,
                chosen=variant is variants[-1] and len(variants) > 1,
            )


def _usage(downloads: tuple[Download, ...]) -> tuple[str, ...]:
    packed = next((file.href for file in downloads if file.href.endswith(".sec")), None)
    if packed is None:
        return ()
    return (
        "import secateur",
        f'network = secateur.load("{packed}")',
        'images = ["image.png"]',
        "print(network.predict(images))",
    )


LADDER = {
    "reference": "reference, float",
    "pruned": "pruned, float",
    "quantized": "pruned, int8",
}


def _ladder(variants: tuple[Variant, ...]) -> Iterable[Step]:
    for variant in variants:
        if variant.latency is not None and variant.name in LADDER:
            yield Step(name=LADDER[variant.name], latency=variant.latency)


# ---- curves


def _curves(findings: Findings) -> Iterable[Curve]:
    threshold = findings.threshold
    mark = None
    if threshold is not None:
        mark = (100 * threshold.value, f"threshold {numbers.percent(threshold.value)}")
    points = findings.network_scan
    x_title = "pruned without retraining, %"
    accuracy = [(100 * p.fraction, p.accuracy) for p in points]
    drops = [(100 * p.fraction, p.drop) for p in points]
    if curve := _curve("scan", "Validation top-1, %", x_title, {"": accuracy}, mark_x=mark):
        yield curve
    if curve := _drop_curve(findings, x_title, drops, mark):
        yield curve
    for name, title, pick in (
        ("accuracy", "Validation top-1, %, by epoch", lambda point: point.accuracy),
        ("loss", "Training loss by epoch", lambda point: point.loss),
    ):
        stages: dict[str, list[tuple[float, Record | None]]] = {}
        for number, point in enumerate(findings.epochs, 1):
            stages.setdefault(point.stage, []).append((number, pick(point)))
        if curve := _curve(name, title, "epoch", stages, group="training"):
            yield curve


def _drop_curve(
    findings: Findings,
    x_title: str,
    drops: list[tuple[float, Record | None]],
    mark: tuple[float, str] | None,
) -> Curve | None:
    """The drop near the tolerance; larger losses are cut to keep this part readable."""
    tolerance = findings.tolerance
    reach = 4 * (tolerance or 1.0)
    beyond = [i for i, (_, drop) in enumerate(drops) if drop and drop.value > reach]
    shown = drops[: beyond[0] + 1] if beyond else drops
    lows = [drop.low for _, drop in shown if drop and drop.low is not None]
    return _curve(
        "drop",
        "Drop around the tolerance, points",
        x_title,
        {"": shown},
        mark_x=mark if mark and mark[0] <= max((x for x, _ in shown), default=0) else None,
        mark_y=None if tolerance is None else (tolerance, "tolerance"),
        y_limits=(min([-0.25 * reach, *lows]), reach),
    )


def _curve(
    name: str,
    title: str,
    x_title: str,
    series: dict[str, list[tuple[float, Record | None]]],
    **more: object,
) -> Curve | None:
    """A curve of the available records, or None."""
    drawn = []
    for label, points in series.items():
        known = tuple(
            Point(x=x, y=y) for x, record in points if (y := estimate(record)) is not None
        )
        if known:
            drawn.append(Series(name=label, points=known))
    if not drawn:
        return None
    fields = {"name": name, "title": title, "x_title": x_title, "series": tuple(drawn)}
    return Curve.model_validate(fields | more)


def _sensitivity(findings: Findings) -> Sensitivity | None:
    scans = findings.layer_scans
    if not scans:
        return None
    fractions = sorted({point.fraction for points in scans.values() for point in points})
    return Sensitivity(
        fractions=tuple(fractions),
        layers=tuple(
            (layer, tuple(_at(points, fraction) for fraction in fractions))
            for layer, points in scans.items()
        ),
    )


def _at(points: Iterable, fraction: float) -> Estimate | None:
    return next((estimate(p.drop) for p in points if p.fraction == fraction), None)


def _scan_note(findings: Findings) -> str:
    threshold, tolerance = findings.threshold, findings.tolerance
    if threshold is None:
        return ""
    every = "Every prunable layer at once, without retraining."
    if tolerance is None:
        return f"{every} The threshold of {numbers.percent(threshold.value)} was set by hand."
    within = (
        f"the upper end of the drop’s 95 % interval stays within the tolerance of "
        f"{counted(tolerance, 'point')}."
    )
    if threshold.value > 0:
        return f"{every} Up to {numbers.percent(threshold.value)}, {within}"
    return f"{every} At no fraction scanned does {within.replace('stays', 'stay')}"


def _provenance(findings: Findings, recipe: str) -> Provenance:
    about = findings.about
    facts = {"Recipe": about.recipe_id, "Seed": str(about.seed)}
    for name, values in findings.environment.items():
        facts[name] = "; ".join(
            f"{value} ({', '.join(stages)})" if len(values) > 1 else value
            for value, stages in values.items()
        )
    return Provenance(recipe=recipe.strip(), facts=facts, stages=findings.seconds)
