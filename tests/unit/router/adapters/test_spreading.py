"""Which loads are begun for the demand there is."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.fakes.fake_presence import new_record

from octavo_protocol.keys import Keys
from octavo_protocol.records import AdapterSource, ReplicaRecord, encode
from octavo_router.adapters.holdings import AdapterHoldings
from octavo_router.adapters.spreading import AdapterSpreading
from octavo_router.deployment import Deployment
from octavo_router.prefix_index import IndexBudget


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeLoader:
    """Notes what it is to load; nothing ever arrives by itself."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []

    def is_loading(self, incarnation: str, name: str) -> bool:
        return False

    def start(
        self, adapters: AdapterHoldings, record: ReplicaRecord, source: AdapterSource
    ) -> None:
        self.begun.append((record.replica_id, source.name))


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.deployment = Deployment(Keys("n", "d"), budget=IndexBudget(), clock=self.clock)
        self.loader = FakeLoader()
        self.spreading = AdapterSpreading(lambda: (), self.loader)

    def register(self, *names: str, on_demand: bool = True) -> None:
        sources = [AdapterSource(name, f"hf://org/{name}", None, on_demand) for name in names]
        self.deployment.replicas.adapters.take_sources(sources)

    def replicas(self, **held: list[str]) -> None:
        """Replicas of eight sequences with room for two adapters."""
        fields: dict[str, Any] = {"max_adapters": 2, "max_num_seqs": 8}
        self.deployment.take(
            {
                name: encode(new_record(name, adapters=a, loaded_adapters=a, **fields))
                for name, a in held.items()
            }
        )

    def begun(self) -> list[tuple[str, str]]:
        """Loads of one look, by replica."""
        self.loader.begun.clear()
        self.spreading.spread(self.deployment)
        return sorted(self.loader.begun)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def requests(world: World) -> Iterator[ExitStack]:
    """Requests in flight; ten minutes after they came they count whole."""
    with ExitStack() as stack:
        yield stack


def ask(world: World, requests: ExitStack, name: str, times: int) -> None:
    for _ in range(times):
        requests.enter_context(world.deployment.demand.request(name))
    world.clock.now += 600


def test_a_replica_for_each_half_of_its_sequences(world: World, requests: ExitStack) -> None:
    world.register("sql")
    world.replicas(a=["sql"], b=[], c=[])
    ask(world, requests, "sql", 4)
    assert world.begun() == []
    ask(world, requests, "sql", 4)
    assert len(world.begun()) == 1
    ask(world, requests, "sql", 100)
    assert world.begun() == [("b", "sql"), ("c", "sql")]


def test_one_load_at_a_time_on_each_replica_and_the_most_wanted_first(
    world: World, requests: ExitStack
) -> None:
    world.register("hot", "warm")
    world.replicas(a=[])
    ask(world, requests, "warm", 1)
    ask(world, requests, "hot", 3)
    assert world.begun() == [("a", "hot")]
    world.replicas(a=["hot"])
    assert world.begun() == [("a", "warm")]


def test_a_replica_that_came_back_empty_gets_what_is_wanted(
    world: World, requests: ExitStack
) -> None:
    world.register("sql")
    world.replicas(a=["sql"])
    ask(world, requests, "sql", 1)
    assert world.begun() == []
    world.replicas(a=[])
    assert world.begun() == [("a", "sql")]


def test_adapters_for_every_replica_and_unknown_ones_are_not_its_business(
    world: World, requests: ExitStack
) -> None:
    world.register("sql", on_demand=False)
    world.replicas(a=[])
    ask(world, requests, "sql", 9)
    ask(world, requests, "loaded by hand", 9)
    assert world.begun() == []


def test_what_a_replica_refused_is_not_pressed_on_it(world: World, requests: ExitStack) -> None:
    world.register("sql")
    world.replicas(a=[])
    ask(world, requests, "sql", 1)
    [record] = world.deployment.replicas.records
    world.deployment.replicas.adapters.note_refused(record.incarnation, "sql", "rank 64")
    assert world.begun() == []
