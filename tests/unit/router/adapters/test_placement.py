"""Where further copies go."""

from octavo_router.adapters.placement import Host, new_hosts


def host(name: str, *adapters: str, room: int = 2, load_s: float = 0.0) -> Host:
    return Host(name, frozenset(adapters), room, load_s)


def ids(hosts: list[Host]) -> list[str]:
    return [each.replica_id for each in hosts]


def test_no_copy_is_made_where_there_are_enough() -> None:
    assert new_hosts("sql", 1, [host("a", "sql"), host("b")], {"sql": 1.0}) == []
    assert new_hosts("sql", 0, [host("a")], {}) == []


def test_the_least_loaded_replica_with_room_comes_first() -> None:
    hosts = [host("busy", load_s=2.0), host("full", "x", "y"), host("idle", "x")]
    assert ids(new_hosts("sql", 3, hosts, {"sql": 1.0})) == ["idle", "busy", "full"]
    assert ids(new_hosts("sql", 1, hosts, {"sql": 1.0})) == ["idle"]


def test_an_adapter_gives_way_only_to_one_that_is_asked_for_twice_as_much() -> None:
    hosts = [host("a", "hot", "warm")]
    demands = {"hot": 9.0, "warm": 1.0}
    assert new_hosts("sql", 1, hosts, demands | {"sql": 1.5}) == []
    assert ids(new_hosts("sql", 1, hosts, demands | {"sql": 2.0})) == ["a"]


def test_a_replica_that_takes_no_adapters_gets_none() -> None:
    assert new_hosts("sql", 1, [host("a", room=0)], {"sql": 9.0}) == []


def test_routers_agree_and_different_adapters_spread() -> None:
    hosts = [host(name) for name in "abcdefgh"]
    names = [f"adapter-{number}" for number in range(40)]
    chosen = {name: ids(new_hosts(name, 1, hosts, {name: 1.0})) for name in names}
    again = {name: ids(new_hosts(name, 1, hosts[::-1], {name: 1.0})) for name in names}
    assert chosen == again
    assert len({each for (each,) in chosen.values()}) == 8
