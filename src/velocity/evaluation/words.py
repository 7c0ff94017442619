"""A difference between two models in words that say no more than its interval does. It knows no rows and no file."""

from __future__ import annotations

from typing import Literal

from velocity.intervals import Interval

Better = Literal["higher", "lower"]
Unit = Literal["points", "percent", "bits"]

# How a number of each unit is shown: times what, with how many digits, under which name.
SHOWN: dict[Unit, tuple[float, int, str]] = {
    "points": (100.0, 1, " points"),
    "percent": (100.0, 1, " %"),
    "bits": (1.0, 3, " bits a byte"),
}
MANY = 5  # differences that are looked at together before the chance of a false one is worth a line
MINUS = "\N{MINUS SIGN}"


def said(difference: Interval, rows: int, *, better: Better, unit: Unit) -> str:
    """Which of two models is better, by how much and how surely; a positive difference is ours being higher."""
    scale, digits, name = SHOWN[unit]
    if difference.low is None or difference.high is None:
        return f"{_signed(difference.value * scale, digits)}{name}, of which {_rows(rows)} cannot say how sure it is"
    ends = (difference.low * scale, difference.high * scale)
    if not difference.certain:
        span = " to ".join(_signed(end, digits) for end in ends)
        return f"no difference that {_rows(rows)} can show ({span}{name})"
    higher = difference.value > 0
    verdict = "better" if higher == (better == "higher") else "worse"
    least, most = sorted(abs(end) for end in ends)
    amount = f"by {abs(difference.value) * scale:.{digits}f}{name} (95 %: {least:.{digits}f} to {most:.{digits}f})"
    if unit == "points":
        return f"{verdict} {amount}"
    return f"{verdict}: {'higher' if higher else 'lower'} {amount}"


def caution(differences: int) -> str:
    """What is to be kept in mind where many differences are looked at; empty for a handful."""
    if differences <= MANY:
        return ""
    false = differences * 0.05
    return (
        f"{differences} differences were looked at: were there none at all, "
        f"about {false:.{0 if false >= 2 else 1}f} of them would still look like one"
    )


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
