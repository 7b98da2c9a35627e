"""Days of churn leave nothing behind: memory and metric series are flat.

`python -m benchmarks.router_soak` runs a longer one.
"""

import tracemalloc
from collections.abc import Iterator

import pytest
from tests.fakes.churn import Churn, Size, growth, sampled


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
def test_memory_and_series_are_flat_over_hours_of_churn() -> None:
    churn = Churn(size=Size(num_deployments=4, num_requests=20))
    churn.run(60)  # the last thousand decisions are kept
    samples = list(sampled(churn, num_ticks=180, num_samples=9))
    assert min(each.num_entries for each in samples) > 1000
    assert max(each.num_left for each in samples) <= 20  # of the last guesses, which expire late
    assert max(each.num_series for each in samples) <= 130
    assert abs(growth([each.num_objects for each in samples])) < 0.01
    assert abs(growth([each.num_bytes for each in samples])) < 0.05
