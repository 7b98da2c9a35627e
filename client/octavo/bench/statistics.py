"""Percentiles and means of small samples."""

from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the two nearest ranks; 0.0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percentiles(values: Sequence[float], percents: Iterable[int]) -> dict[str, float]:
    return {str(percent): percentile(values, percent) for percent in percents}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
