"""Numbers as a person reads them: the digits that are known, no exponents, a unit of their size. Imports no torch."""

import math


def decimals(value: float) -> int:
    """Behind the point, so that a number of that size has three digits."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0


def rounded(value: float, digits: int = 3) -> str:
    """To so many digits that say something: 48,706.3 is 48,700."""
    if value <= 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(value))
    return f"{round(value, places):,.{max(0, places)}f}"


def duration(seconds: float) -> str:
    """95 s, 45 min, 12.3 h, 5.2 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
