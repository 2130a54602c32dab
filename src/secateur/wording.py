"""Numbers with their nouns, for messages and reports."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, which is singular after 1 only.

    Args:
        number: An integer, shown with commas; or a float, shown with at most six digits.
        noun: In the singular.
        plural: By default ``noun`` with an s.

    Example:
        >>> counted(1, "class", "classes"), counted(1.0, "point"), counted(0.5, "point")
        ('1 class', '1 point', '0.5 points')
        >>> counted(1234, "image")
        '1,234 images'
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or f'{noun}s'}"
