"""Escapes untrusted text for terminals, CSV and LaTeX."""

from __future__ import annotations

import unicodedata

_NOT_PRINTED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories: controls, invisible format characters, surrogates, line separators."""


def printable(text: object) -> str:
    r"""Return ``text`` as one line with all control characters escaped.

    Escape sequences of terminals, bidirectional overrides and lone surrogates lose their effect.

    Example:
        >>> printable("shoe\x1b[2J")
        'shoe\\x1b[2J'
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _NOT_PRINTED else c
        for c in line
    )


def csv_text(text: object) -> str:
    """Return ``text`` with an apostrophe before it if a spreadsheet would take it for a formula.

    Example:
        >>> csv_text("=cmd()"), csv_text("-1.5"), csv_text("shoe")
        ("'=cmd()", '-1.5', 'shoe')
    """
    line = printable(text)
    if line[:1] in ("=", "+", "-", "@") and not _is_number(line):
        return f"'{line}"
    return line


def latex_text(text: object) -> str:
    r"""Return ``text`` escaped for LaTeX.

    Example:
        >>> latex_text(r"50 % \input{x}")
        '50 \\% \\textbackslash{}input\\{x\\}'
    """
    return "".join(_LATEX.get(c, c) for c in printable(str(text).replace("\n", " ")))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "×": r"$\times$",
}
