"""How numbers are written for people. It knows no unit of its own."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, thousands apart, no exponent where a person writes none; `not finite` for None."""
    if value is None or not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e15):
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+", "e")  # with a program's minus
    decimals = max(digits - 1 - math.floor(math.log10(size)), 0) if size else 0
    text = f"{value:,.{min(decimals, 6)}f}"
    return text.replace("-", "−")


def count(value: float) -> str:
    """A number of things: 12,345; 10 million and more as 12.3 M, 4.56 B."""
    for limit, letter in ((1e9, "B"), (1e6, "M")):
        if value >= 10 * limit or (letter == "B" and value >= limit):
            return f"{value / limit:.3g} {letter}"
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A tick of an axis: 0.01, 250, 1.5k, 20M."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}".replace("e-0", "e-")


def percent(share: float) -> str:
    """A change with its sign: +12.3 %, −4.0 %."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def duration(seconds: float) -> str:
    """The two largest units: 45 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def cut(text: str, most: int = 700) -> str:
    """The text; the middle of a long one is left out, and said to be."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} characters …] {text[-half:]}"
