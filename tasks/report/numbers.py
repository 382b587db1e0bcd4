"""Numbers as people read them, the same in the report, in tables and in the terminal."""

__all__ = ["interval", "number", "percent", "points"]


def number(value: float | None) -> str:
    """Four significant digits, thousands apart; an exponent only where the number is very large or very small."""
    if value is None or value != value:
        return "unknown"
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.10g}" if rounded == 0 or 1e-4 <= abs(rounded) < 1e10 else f"{rounded:.4g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent; nothing where there is none."""
    return "" if value is None or value != value else f"{round(value, digits + 2) + 0.0:.{digits}%}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign; nothing where there is none."""
    return "" if difference is None or difference != difference else f"{100 * difference:+.1f}"


def interval(low: float | None, high: float | None, unit: float = 1.0) -> str:
    """Both ends of an interval divided by a unit, or that it is not known."""
    if low is None or high is None or low != low:
        return "unknown"
    return f"{number(low / unit)} … {number(high / unit)}"
