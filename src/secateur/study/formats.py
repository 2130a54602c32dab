"""A table as data, and as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import Literal, NamedTuple

from secateur.escaping import csv_text, latex_text
from secateur.report.numbers import NONE
from secateur.report.render import markdown


@dataclass(frozen=True)
class Entry:
    """An entry of a table.

    Attributes:
        text: Text for people, without the interval.
        value: The unrounded number; None if ``text`` is not a number.
        low: Lower bound, if there is one.
        high: Upper bound, if there is one.
        seeds: Number of seeds; None for published numbers.
        note: Interval and seeds as text.
        marks: Numbers of the footnotes about contradictions, increasing.
    """

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    note: str = ""
    marks: tuple[int, ...] = ()


NOTHING = Entry(NONE)
"""Entry of a number that does not exist."""

NOT_RUN = Entry("not run")
"""Entry of a number that was not measured yet."""

MOST_COLUMNS = 6
"""Largest number of quantities of a table on the page, to fit a window of 1,280 pixels."""

Source = Literal["label", "paper", "report", "measured"]


class Column(NamedTuple):
    """``key`` names it in CSV, ``heading`` for people, ``source`` the origin of its numbers."""

    key: str
    heading: str
    source: Source


@dataclass(frozen=True)
class Table:
    """Published and measured numbers, side by side.

    Attributes:
        name: Stem of its files.
        title: Title for people.
        columns: Label columns first; the first two name a group of rows.
        rows: Rows with an entry for each column.
        footnotes: From number of a mark to its text.
        notes: Notes for readers.
        csv_only: Keys of columns that are replaced by a note for people.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    footnotes: dict[int, str]
    notes: tuple[str, ...]
    csv_only: tuple[str, ...] = ()

    @property
    def for_people(self) -> Table:
        """The table without CSV-only columns."""
        shown = [i for i, column in enumerate(self.columns) if column.key not in self.csv_only]
        return replace(
            self,
            columns=tuple(self.columns[i] for i in shown),
            rows=tuple(tuple(row[i] for i in shown) for row in self.rows),
            csv_only=(),
        )

    @property
    def labels(self) -> int:
        """Number of label columns."""
        return sum(column.source == "label" for column in self.columns)

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown, with its title and notes."""
        if self.csv_only:
            return self.for_people.to_markdown()
        headings = [markdown(_heading(column)) for column in self.columns]
        rules = ["---" if column.source == "label" else "---:" for column in self.columns]
        rows = [[_markdown_entry(entry) for entry in row] for row in self.rows]
        table = [f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows)]
        marks = [f"{_mark((k,))} {markdown(text)}" for k, text in self.footnotes.items()]
        notes = [markdown(note) for note in self.notes]
        parts = [f"### {markdown(self.title)}", "\n".join(table), *marks, *notes]
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Numbers unrounded, a column for each of value, bounds and seeds.

        Missing numbers are empty; the last column names the contradictions of the row.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [*(key for column in self.columns for key in _csv_keys(column)), "contradictions"]
        )
        for row in self.rows:
            marks = sorted({mark for entry in row for mark in entry.marks})
            pairs = zip(self.columns, row, strict=True)
            cells = [cell for column, entry in pairs for cell in _csv_cells(column, entry)]
            notes = " ".join(self.footnotes[mark] for mark in marks)
            writer.writerow([*cells, csv_text(notes)])
        return file.getvalue()

    def to_latex(self) -> str:
        """A ``table*`` that needs the packages booktabs and graphicx."""
        if self.csv_only:
            return self.for_people.to_latex()
        layout = "l" * self.labels + "r" * (len(self.columns) - self.labels)
        blocks = (self._latex_rows(block) for block in self._blocks())
        notes = [
            f"$^{{{_latex_mark(k)}}}$ {latex_text(text)}" for k, text in self.footnotes.items()
        ]
        return "\n".join(
            [
                r"\begin{table*}",
                rf"\caption{{{latex_text(self.title)}}}",
                r"\resizebox{\textwidth}{!}{%",
                rf"\begin{{tabular}}{{{layout}}}",
                r"\toprule",
                *self._latex_head(),
                r"\midrule",
                "\n\\midrule\n".join(blocks),
                r"\bottomrule",
                r"\end{tabular}}",
                *(rf"\par\footnotesize {note}" for note in [*notes, *map(latex_text, self.notes)]),
                r"\end{table*}",
                "",
            ]
        )

    def to_html(self) -> str:
        """Measured numbers with published ones below; footnotes and notes are folded.

        Quantities beyond the first six are in a second, folded table. All text is escaped.
        """
        if self.csv_only:
            return self.for_people.to_html()
        spans = list(self._spans())
        first, rest = spans[:MOST_COLUMNS], spans[MOST_COLUMNS:]
        marks = "".join(
            f'<li id="{self.name}-{k}"><span class="mark">{_mark((k,))}</span> {escape(text)}</li>'
            for k, text in self.footnotes.items()
        )
        notes = "".join(f'<p class="quiet">{escape(note)}</p>\n' for note in self.notes)
        more = f"<details><summary>More quantities</summary>\n{self._html_table(rest)}</details>\n"
        return (
            self._html_table(first)
            + (more if rest else "")
            + (f'<ul class="marks">{marks}</ul>\n' if marks else "")
            + f"<details><summary>How to read it</summary>\n{notes}</details>\n"
        )

    # ---- parts

    def _blocks(self) -> Iterator[list[tuple[Entry, ...]]]:
        """Rows with the same first two labels."""
        for _, rows in groupby(self.rows, lambda row: (row[0].text, row[1].text)):
            yield list(rows)

    def _spans(self) -> Iterator[tuple[str, list[Column]]]:
        """Columns of numbers by their quantity."""
        for heading, columns in groupby(self.columns[self.labels :], lambda c: c.heading):
            yield heading, list(columns)

    def _latex_head(self) -> Iterator[str]:
        empty = " & " * self.labels
        spans, rules, at = [], [], self.labels + 1
        for heading, columns in self._spans():
            spans.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{latex_text(heading)}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + len(columns) - 1}}}")
            at += len(columns)
        yield rf"{empty}{' & '.join(spans)} \\"
        yield " ".join(rules)
        names = [latex_text(c.heading if c.source == "label" else c.source) for c in self.columns]
        yield rf"{' & '.join(names)} \\"

    @staticmethod
    def _latex_rows(rows: Iterable[tuple[Entry, ...]]) -> str:
        return "\n".join(rf"{' & '.join(_latex_entry(entry) for entry in row)} \\" for row in rows)

    def _html_table(self, spans: list[tuple[str, list[Column]]]) -> str:
        title = escape(f"{self.title}: {', '.join(heading for heading, _ in spans)}")
        heads = "".join(
            f'<th scope="col">{escape(heading)}</th>' for heading in ("Variant", *dict(spans))
        )
        body = "\n".join(self._html_block(block, spans) for block in self._blocks())
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">\n'
            f'<table class="measured">\n<caption>{title}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n{body}\n</table>\n</div>\n"
        )

    def _html_block(
        self, rows: list[tuple[Entry, ...]], spans: list[tuple[str, list[Column]]]
    ) -> str:
        name = escape(f"{rows[0][1].text} on {rows[0][0].text}")
        lines = [f'<tr><th scope="rowgroup" colspan="{len(spans) + 1}">{name}</th></tr>']
        for row in rows:
            labels = "".join(
                f'<span class="note">{escape(entry.text)}</span>'
                for entry in row[3 : self.labels]
                if entry not in (NOT_RUN, NOTHING)
            )
            cells = [self._html_cell(heading, columns, row) for heading, columns in spans]
            head = f'<th scope="row">{escape(row[2].text)}{labels}</th>'
            lines.append(f"<tr>{head}{''.join(cells)}</tr>")
        return "<tbody>\n" + "\n".join(lines) + "\n</tbody>"

    def _html_cell(self, heading: str, columns: list[Column], row: tuple[Entry, ...]) -> str:
        """A quantity: the measured number, with the published ones below."""
        measured, printed = NOTHING, []
        for column in columns:
            entry = row[self.columns.index(column)]
            if column.source == "measured":
                measured = entry
            elif entry != NOTHING:
                printed.append(f"{column.source} {escape(entry.text)}{self._html_marks(entry)}")
        kind = "absent" if measured.value is None else "measured"
        note = f'<span class="note">{escape(measured.note)}</span>' if measured.note else ""
        below = f'<span class="printed">{", ".join(printed)}</span>' if printed else ""
        value = f'<span class="{kind}">{escape(measured.text)}</span>'
        return f'<td data-label="{escape(heading)}">{value}{note}{below}</td>'

    def _html_marks(self, entry: Entry) -> str:
        return "".join(
            f'<a class="mark" href="#{self.name}-{k}" title="{escape(self.footnotes[k])}">'
            f"{_mark((k,))}</a>"
            for k in entry.marks
        )


def _heading(column: Column) -> str:
    return column.heading if column.source == "label" else f"{column.heading}, {column.source}"


def _mark(marks: tuple[int, ...]) -> str:
    return "".join(f"†{k}" for k in marks)


def _markdown_entry(entry: Entry) -> str:
    # Notes are numbers in brackets and need no escape.
    parts = [markdown(entry.text) + _mark(entry.marks), entry.note]
    return " ".join(part for part in parts if part)


def _csv_keys(column: Column) -> list[str]:
    if column.source == "label":
        return [column.key]
    key = f"{column.source}_{column.key}"
    return [key, *(f"{key}_{part}" for part in ("low", "high", "seeds"))][
        : 4 if column.source == "measured" else 1
    ]


def _csv_cells(column: Column, entry: Entry) -> list[str]:
    if column.source == "label":
        return [csv_text(entry.text)]
    numbers = [entry.value, entry.low, entry.high, entry.seeds]
    return [
        "" if n is None else repr(n) for n in numbers[: 4 if column.source == "measured" else 1]
    ]


def _latex_mark(k: int) -> str:
    return rf"\dagger {k}"


def _latex_entry(entry: Entry) -> str:
    marks = "".join(f"$^{{{_latex_mark(k)}}}$" for k in entry.marks)
    return " ".join(
        part for part in (latex_text(entry.text) + marks, latex_text(entry.note)) if part
    )
