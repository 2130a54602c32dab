"""An explanation as lines and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from secateur.profiling.block_widths import Width, blocks_are_known
from secateur.profiling.explanation import Explanation
from secateur.profiling.nodes import Node
from secateur.profiling.operators import MOVERS
from secateur.wording import counted


def render(explanation: Explanation, everything: bool = False) -> Iterator[str | Table]:
    """Yield lines and tables that show a result of :func:`explain`.

    Args:
        explanation: What to show.
        everything: Show all nodes and widths, not the slowest only.
    """
    yield _header(explanation)
    yield from _unrest(explanation)
    yield ""
    yield from _node_lines(explanation.nodes, None if everything else 15)
    yield _operator_table(explanation)
    yield ""
    yield from _island_lines(explanation)
    yield ""
    yield from _moving_lines(explanation)
    yield ""
    if blocks_are_known(explanation.processor):
        yield from _width_lines(explanation.widths, None if everything else 10)
    else:
        yield "Widths that miss the kernel's block: not known for this processor"


def _header(explanation: Explanation) -> str:
    threads = counted(explanation.threads, "thread")
    spread = f"p10 {explanation.p10_ms:.3f}, p90 {explanation.p90_ms:.3f}"
    return (
        f"{explanation.file}: {explanation.size_bytes:,} bytes, {explanation.precision}, "
        f"{explanation.median_ms:.3f} ms a run ({spread}), {threads}, {explanation.runtime}, "
        f"{explanation.processor}"
    )


def _unrest(explanation: Explanation) -> Iterator[str]:
    if explanation.p90_ms > 1.5 * explanation.p10_ms:
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


def _operator_table(explanation: Explanation) -> Table:
    table = _table("operator", "count", "ms", "share")
    for name, sums in explanation.operators().items():
        table.add_row(name, str(int(sums["count"])), *_time(sums["ms"], sums["share"]))
    return table


def _island_lines(explanation: Explanation) -> Iterator[str]:
    if explanation.precision == "float":
        yield "Still in float: all of it; `secateur quantize` makes an int8 file"
        return
    edges = ", ".join(explanation.edges) or "none"
    if not explanation.islands:
        yield f"Still in float: nothing; conversions at the edges, as must be: {edges}"
        return
    inside = f"{counted(len(explanation.conversions), 'conversion')} inside"
    yield f"Still in float: {len(explanation.islands)}, with {inside}"
    for island in explanation.islands:
        elapsed = "" if island.ms is None else f", {island.ms:.3f} ms"
        yield f"  {island.name} ({island.operator}{elapsed}): {island.why}"
        yield f"    {island.remedy}"
    yield f"  conversions at the edges, as must be: {edges}"


def _moving_lines(explanation: Explanation) -> Iterator[str]:
    moving = explanation.operators(MOVERS)
    if not moving:
        yield "Only moves data: nothing"
        return
    ms, share = (sum(sums[key] for sums in moving.values()) for key in ("ms", "share"))
    each = ", ".join(f"{name} {int(sums['count'])}" for name, sums in moving.items())
    yield f"Only moves data: {100 * share:.1f} % of the time, {ms:.3f} ms ({each})"
    if {"Transpose", "Split", "Gather"} & set(moving) and share > 0.02:
        yield "  a channel shuffle folds into the layers around it: `secateur export` again"


def _width_lines(widths: tuple[Width, ...], most: int | None) -> Iterator[str]:
    """Group layers with the same unfilled block."""
    layers: dict[str, list[Width]] = {}
    for width in widths:
        layers.setdefault(str(width), []).append(width)
    elapsed = {line: sum(width.ms for width in same) for line, same in layers.items()}
    names = {width.name for width in widths}
    missing = counted(len(names), "layer") if names else "none"
    yield f"Widths that miss the kernel's block: {missing}"
    for line in sorted(layers, key=lambda line: -elapsed[line])[:most]:
        first, *others = [width.name for width in layers[line]]
        more = f" and {len(others)} more" if others else ""
        yield f"  {line}"
        yield f"    {first}{more}, {elapsed[line]:.3f} ms in all"
    if most and len(layers) > most:
        yield f"  and {counted(len(layers) - most, 'more width')}; --all shows them"
