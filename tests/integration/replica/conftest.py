"""Replicas for the tests of this folder: a shared fast one, and others by need."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.replica.harness import Replica

StartReplica = Callable[..., Replica]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica that answers as fast as it can. Tests leave it as they found it."""
    replica = Replica(tmp_path_factory.mktemp("replica"))
    try:
        yield replica.wait_ready()
    finally:
        replica.close()


@pytest.fixture(scope="module")
def slow_replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica whose longest answers take many seconds."""
    replica = Replica(tmp_path_factory.mktemp("slow-replica"), step_s=0.05)
    try:
        yield replica.wait_ready()
    finally:
        replica.close()


@pytest.fixture
def start_replica(tmp_path: Path) -> Iterator[StartReplica]:
    """Starts replicas that end with the test."""
    replicas: list[Replica] = []

    def start(**options: Any) -> Replica:
        replicas.append(Replica(tmp_path, **options))
        return replicas[-1]

    yield start
    for replica in replicas:
        replica.close()
