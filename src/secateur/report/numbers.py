"""Formats numbers for the terminal, HTML and Markdown."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""Placeholder for a missing number."""


def fixed(value: float, digits: int = 2) -> str:
    """``-0.12`` with a typographic minus; zero has no sign."""
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        return text[1:] if float(text.replace(",", "")) == 0 else MINUS + text[1:]
    return text


def signed(value: float, digits: int = 2) -> str:
    """Like :func:`fixed`, with a plus sign if the rounded value is positive."""
    text = fixed(value, digits)
    return text if text.startswith(MINUS) or not text.strip("0.") else "+" + text


def significant(value: float, digits: int = 3) -> str:
    """``0.0523``, ``1.87``, ``11.5``, ``1,234``: ``digits`` significant digits, no exponent."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # so that 9.996 is 10.0, not 10.00
    return fixed(rounded, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))


def percent(fraction: float) -> str:
    """A fraction in [0, 1] as ``35 %`` or ``12.5 %``."""
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def count(value: float) -> str:
    """An exact count: ``1,263,854``."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """A count in three digits: ``1.26 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{significant(value / size)} {unit}"
    return count(value)


def size(value: float) -> str:
    """Bytes in a suitable unit; 1 kB = 10^3, 1 MB = 10^6 bytes."""
    return f"{short_count(value)}{'B' if value >= 999.5 else ' B'}"


def times(ratio: float, digits: int = 3) -> str:
    """A ratio: ``3.91×``."""
    return f"{significant(ratio, digits)}×"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``4 min 10 s``, ``1 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def probability(p: float) -> str:
    """A p-value: ``= 0.034``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {significant(p, 2)}"
