"""Metrics as objects: what `LLM.get_metrics` returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric with its labels."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Counter(Metric):
    """Only grows."""

    value: int


@dataclass(frozen=True)
class Gauge(Metric):
    """Goes up and down."""

    value: float


@dataclass(frozen=True)
class Vector(Metric):
    """Several counts that belong together, by position."""

    values: list[int]


@dataclass(frozen=True)
class Histogram(Metric):
    """Observations. buckets: upper bound -> observations of at most that size."""

    count: int
    sum: float
    buckets: dict[str, int]
